"""Table of the decoder beside Transformers' models, one row per architecture."""

from ember.records.schema import (
    EVIDENCE,
    OUTCOME,
    WEIGHTS,
    Column,
    Schema,
    flag,
    integer,
    maybe,
    number,
    text,
)


def _difference(name: str, meaning: str) -> Column:
    return maybe(name, "", f"largest absolute difference: {meaning}")


ARCHITECTURES = Schema(
    "architectures",
    "The decoder beside Transformers' model of the same architecture: small random weights, "
    "float32, on the CPU",
    (
        text("architecture", "preset whose features the small model has"),
        text("model_type", "its type in a Hugging Face config.json"),
        integer("parameters", "count", "of the small model"),
        integer("prompt_tokens", "tokens", "prompt length; batches of two"),
        integer(
            "sliding_window",
            "tokens",
            "tokens seen in sliding layers; null where no layer slides",
            nullable=True,
        ),
        integer("draws", "", "times that weights and prompt were drawn; the worst counts"),
        maybe("logit_std", "", "standard deviation of Transformers' logits"),
        _difference("logits_whole", "logits of one prefill"),
        _difference("logits_pieces", "logits of a prefill in uneven pieces over a cache"),
        _difference("logits_steps", "logits token by token over a cache"),
        _difference("keys_values", "cached keys and values that Transformers keeps as well"),
        _difference("hidden", "hidden states of each layer run alone, from Transformers' input"),
        integer("generated_tokens", "tokens", "greedy tokens of all draws, by each", nullable=True),
        integer(
            "tokens_equal",
            "tokens",
            "leading greedy tokens of Engine.generate that are those of Transformers' generate",
            nullable=True,
        ),
        flag("fast_step", "whether the engine packs it for its fast steps"),
        flag("agrees", "no difference above the tolerance, all greedy tokens equal", nullable=True),
        number("tolerance", "", "largest difference that counts as agreement"),
        text("transformers", "version compared with", nullable=True),
        WEIGHTS,
        EVIDENCE,
        *OUTCOME,
    ),
    key=("architecture",),
)
