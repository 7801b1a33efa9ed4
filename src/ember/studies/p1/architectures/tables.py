"""Table of the decoder beside Transformers' models, one row per architecture."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema


def _difference(name: str, meaning: str) -> Column:
    return Column(name, "float", "", f"largest absolute difference: {meaning}", nullable=True)


ARCHITECTURES = Schema(
    "architectures",
    "The decoder beside Transformers' model of the same architecture: small random weights, "
    "float32, on the CPU",
    (
        Column("architecture", "str", "", "preset whose features the small model has"),
        Column("model_type", "str", "", "its type in a Hugging Face config.json"),
        Column("parameters", "int", "count", "of the small model"),
        Column("prompt_tokens", "int", "tokens", "prompt length; batches of two"),
        Column(
            "sliding_window",
            "int",
            "tokens",
            "tokens seen in sliding layers; null where no layer slides",
            nullable=True,
        ),
        Column("draws", "int", "", "times that weights and prompt were drawn; the worst counts"),
        Column(
            "logit_std", "float", "", "standard deviation of Transformers' logits", nullable=True
        ),
        _difference("logits_whole", "logits of one prefill"),
        _difference("logits_pieces", "logits of a prefill in uneven pieces over a cache"),
        _difference("logits_steps", "logits token by token over a cache"),
        _difference("keys_values", "cached keys and values that Transformers keeps as well"),
        _difference("hidden", "hidden states of each layer run alone, from Transformers' input"),
        Column(
            "generated_tokens",
            "int",
            "tokens",
            "greedy tokens of all draws, by each",
            nullable=True,
        ),
        Column(
            "tokens_equal",
            "int",
            "tokens",
            "leading greedy tokens of Engine.generate that are those of Transformers' generate",
            nullable=True,
        ),
        Column("fast_step", "bool", "", "whether the engine packs it for its fast steps"),
        Column(
            "agrees",
            "bool",
            "",
            "no difference above the tolerance, and all greedy tokens equal",
            nullable=True,
        ),
        Column("tolerance", "float", "", "largest difference that counts as agreement"),
        Column("transformers", "str", "", "version compared with", nullable=True),
        WEIGHTS,
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("architecture",),
)
