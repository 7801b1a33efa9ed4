"""Tables of this engine beside other frameworks: single runs, and their summary."""

from ember.records.schema import (
    DEVICE,
    EVIDENCE,
    MODEL,
    OUTCOME,
    WEIGHTS,
    Column,
    Schema,
    flag,
    integer,
    maybe,
    spread,
    text,
)

_POINT = (
    text("point", "model and lengths that are compared"),
    text("framework", "name in p1.frameworks.peers"),
    integer("prompt_tokens", "tokens", "prompt length"),
    integer("generated_tokens", "tokens", "new tokens, the same for all: none stops early"),
    integer("batch", "sequences", "prompts at once"),
)
# What makes rows not like for like.
_CAVEATS = (
    text("versions", "of the framework and what it rests on", nullable=True),
    integer("threads", "", "CPU threads it may use", nullable=True),
    integer("decode_threads", "", "of single-token steps, where it says so", nullable=True),
    text("weights_format", "what the framework read", nullable=True),
    text("gguf_sha256", "hash of the GGUF file, where it was read", nullable=True),
    text("kv_cache", "kind of KV cache", nullable=True),
    text("kv_dtype", "number format of the KV cache", nullable=True),
    text(
        "ttft_until",
        "what the time to the first token includes: until its logits are there, or the token",
        nullable=True,
    ),
    maybe("load_s", "s", "loading the model, not in any speed"),
    maybe(
        "first_run_s",
        "s",
        "the first unrecorded generation: with compilation and capture, which no speed includes",
    ),
    flag("same_weights", "whether the weights are those Ember ran", nullable=True),
)
_MACHINE = (
    DEVICE,
    text("dtype", "number format asked for"),
    MODEL,
    integer("step_bytes", "bytes", "weights and mean KV that one decoding step reads"),
    maybe(
        "read_gb_s",
        "GB/s",
        "read bandwidth: best of sums and matrix-vector products before and between the rounds",
    ),
    maybe(
        "limit_tokens_per_s",
        "tokens/s",
        "read_gb_s / step_bytes; null where these fit into the last cache: memory is no limit then",
    ),
    maybe(
        "load_before",
        "",
        "load average of the machine before the frameworks started: above 0, others were at work",
    ),
    WEIGHTS,
    EVIDENCE,
    *OUTCOME,
)

FRAMEWORK_RUNS = Schema(
    "framework_runs",
    "Greedy generation of the same prompts by this engine and others, in turns",
    (
        *_POINT,
        integer("repeat", "", "round: every framework runs once, first another each time"),
        maybe("ttft_ms", "ms", "time to the first token"),
        maybe("decode_ms", "ms", "from the first token to the last"),
        maybe("total_ms", "ms", "the whole generation"),
        maybe("tpot_ms", "ms", "decode_ms by the tokens after the first"),
        maybe("decode_tokens_per_s", "tokens/s", "1000 / tpot_ms"),
        maybe("total_tokens_per_s", "tokens/s", "generated_tokens / total_ms"),
        maybe("ember_ratio", "", "Ember's decode speed over this framework's, same round"),
        maybe(
            "tokens_equal_share",
            "fraction",
            "leading tokens that equal Ember's in the same round; null for other weights",
        ),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework", "repeat"),
)


def _runs(name: str, unit: str, meaning: str) -> tuple[Column, ...]:
    return spread(name, unit, meaning, ("mean", "std", "cv"), maybe)


FRAMEWORKS = Schema(
    "frameworks",
    "This engine beside other frameworks: greedy generation, same prompts and lengths (P1-1.3)",
    (
        *_POINT,
        integer("n", "", "recorded runs"),
        *_runs("decode_tokens_per_s", "tokens/s", "decode speed"),
        *_runs("total_tokens_per_s", "tokens/s", "generated tokens by the whole time"),
        *_runs("ttft_ms", "ms", "time to the first token"),
        *_runs("tpot_ms", "ms", "time per token after the first"),
        maybe("ember_ratio", "", "Ember's decode speed over this framework's, median of rounds"),
        maybe("ember_ratio_min", "", "least of the rounds"),
        maybe("ember_ratio_max", "", "greatest of the rounds"),
        maybe("tokens_equal_share", "fraction", "least of the rounds"),
        text("caveats", "in what the row differs from Ember's", nullable=True),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework"),
)
