"""Table of the decoder beside Transformers' models, one row per architecture."""

from ember.records import schema as s


def _difference(name: str, meaning: str) -> s.Column:
    return s.maybe(name, "", f"largest absolute difference: {meaning}")


ARCHITECTURES = s.Schema(
    "architectures",
    "The decoder beside Transformers' model of the same architecture: small random weights, "
    "float32, on the CPU",
    (
        s.text("architecture", "preset whose features the small model has"),
        s.text("model_type", "its type in a Hugging Face config.json"),
        s.integer("parameters", "count", "of the small model"),
        s.integer("prompt_tokens", "tokens", "prompt length; batches of two"),
        s.integer("sliding_window", "tokens", "of sliding layers", nullable=True),
        s.integer("draws", "", "times that weights and prompt were drawn; the worst counts"),
        s.maybe("logit_std", "", "standard deviation of Transformers' logits"),
        _difference("logits_whole", "logits of one prefill"),
        _difference("logits_pieces", "logits of a prefill in uneven pieces over a cache"),
        _difference("logits_steps", "logits token by token over a cache"),
        _difference("keys_values", "cached keys and values that Transformers keeps as well"),
        _difference("hidden", "hidden states of each layer run alone, from Transformers' input"),
        s.integer("generated_tokens", "tokens", "greedy, of all draws, by each", nullable=True),
        s.integer("tokens_equal", "tokens", "leading ones that are Transformers'", nullable=True),
        s.flag("fast_step", "whether compiled code decodes it on the CPU"),
        s.flag("agrees", "no larger difference, all greedy tokens equal", nullable=True),
        s.number("tolerance", "", "largest difference that counts as agreement"),
        s.text("transformers", "version compared with", nullable=True),
        s.WEIGHTS,
        s.EVIDENCE,
        *s.OUTCOME,
    ),
    key=("architecture",),
)
