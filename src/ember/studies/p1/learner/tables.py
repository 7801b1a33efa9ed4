"""Tables of the learner: a LoRA update on one micro-batch of completions (P1-6.1)."""

from ember.records import schema as s

FORMS = ("independent", "shared_prompt")

POINT = (
    s.text("point", "readable id: prompts x candidates, context/generation"),
    s.integer("prompts", "", "prompts of the micro-batch"),
    s.integer("candidates", "", "completions of each"),
    s.integer("context", "tokens", "prompt length"),
    s.integer("generation", "tokens", "of each completion"),
    s.text(
        "form",
        "independent: each completion is a sequence with its prompt; shared_prompt: a prompt's "
        "tokens run once for its completions",
        values=FORMS,
    ),
    s.integer("frozen_layers", "", "first layers without an adapter: their backward is saved"),
    s.integer("rank", "", "of the adapter of q, k, v and o; A is frozen, AdamW trains B"),
    s.integer("tokens", "tokens", "that run through the layers"),
    s.number(
        "operations",
        "",
        "multiplications and additions of forward, its repetition under activation checkpointing, "
        "and backward",
    ),
)

LEARNER = s.Schema(
    "learner",
    "One LoRA update (forward, backward, optimizer) of a micro-batch, one row per timed update",
    (
        *POINT,
        s.integer("repeat", "", "recorded update, from 0"),
        s.number("ms", "ms", "of the update, by the wall clock"),
        s.maybe("peak_gb", "GB", "device memory in use at most, weights included; null on a CPU"),
        s.number("tflops", "TFLOP/s", "operations / ms"),
        s.number("matmul_tflops", "TFLOP/s", "of large products, measured in the same run"),
        s.number("share", "fraction", "tflops / matmul_tflops"),
        s.number("loss", "nats", "mean cross-entropy of the completions' tokens, before it"),
        *s.MACHINE,
    ),
    key=("point", "form", "frozen_layers", "repeat"),
)

LEARNER_SPEED = s.Schema(
    "learner_speed",
    "A LoRA update on a micro-batch of completions, prompts shared or not",
    (
        *POINT,
        s.integer("n", "", "recorded updates"),
        *s.spread("ms", "ms", "an update"),
        s.number("speedup", "", "median of the independent form / median of this"),
        s.number("token_ratio", "", "tokens of the independent form / tokens of this"),
        s.maybe("peak_gb", "GB", "device memory in use at most, weights included; null on a CPU"),
        s.number("tflops_median", "TFLOP/s", "operations / ms, median"),
        s.number("matmul_tflops", "TFLOP/s", "of large products, measured in the same run"),
        s.number("share_median", "fraction", "tflops / matmul_tflops, median"),
        *s.MACHINE,
    ),
    key=("point", "form", "frozen_layers"),
)
