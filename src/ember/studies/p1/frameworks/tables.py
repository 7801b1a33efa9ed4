"""Tables of this engine beside other frameworks: single runs, and their summary."""

from ember.records import schema as s

_POINT = (
    s.text("point", "model and lengths that are compared"),
    s.text("framework", "name in p1.frameworks.peers"),
    s.integer("prompt_tokens", "tokens", "prompt length"),
    s.integer("generated_tokens", "tokens", "new tokens, the same for all: none stops early"),
    s.integer("batch", "sequences", "prompts at once"),
)
# What makes rows not like for like.
_CAVEATS = (
    s.text("versions", "of the framework and what it rests on", nullable=True),
    s.integer("threads", "", "CPU threads it may use", nullable=True),
    s.integer("decode_threads", "", "of single-token steps, where it says so", nullable=True),
    s.text("weights_format", "what the framework read", nullable=True),
    s.text("gguf_sha256", "hash of the GGUF file, where it was read", nullable=True),
    s.text("kv_cache", "kind of KV cache", nullable=True),
    s.text("kv_dtype", "number format of the KV cache", nullable=True),
    s.text("ttft_until", "end of ttft_ms: logits or token", nullable=True),
    s.maybe("load_s", "s", "loading the model, not in any speed"),
    s.maybe("first_run_s", "s", "the first warm-up, with compilation and capture"),
    s.flag("same_weights", "whether the weights are those Ember ran", nullable=True),
)
_MACHINE = (
    s.DEVICE,
    s.text("dtype", "number format asked for"),
    s.MODEL,
    s.integer("step_bytes", "bytes", "weights and mean KV that one decoding step reads"),
    s.maybe("read_gb_s", "GB/s", "read bandwidth, the best before and between rounds"),
    s.maybe("limit_tokens_per_s", "tokens/s", "read_gb_s / step_bytes; null if in cache"),
    s.maybe("load_before", "", "load average before the frameworks started"),
    s.WEIGHTS,
    s.EVIDENCE,
    *s.OUTCOME,
)

FRAMEWORK_RUNS = s.Schema(
    "framework_runs",
    "Greedy generation of the same prompts by this engine and others, in turns",
    (
        *_POINT,
        s.integer("repeat", "", "round: every framework runs once, first another each time"),
        s.maybe("ttft_ms", "ms", "time to the first token"),
        s.maybe("decode_ms", "ms", "from the first token to the last"),
        s.maybe("total_ms", "ms", "the whole generation"),
        s.maybe("tpot_ms", "ms", "decode_ms by the tokens after the first"),
        s.maybe("decode_tokens_per_s", "tokens/s", "1000 / tpot_ms"),
        s.maybe("total_tokens_per_s", "tokens/s", "generated_tokens / total_ms"),
        s.maybe("ember_ratio", "", "Ember's decode speed over this framework's, same round"),
        s.maybe("tokens_equal_share", "fraction", "leading tokens that are Ember's, same round"),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework", "repeat"),
)


def _runs(name: str, unit: str, meaning: str) -> tuple[s.Column, ...]:
    return s.spread(name, unit, meaning, ("mean", "std", "cv"), s.maybe)


FRAMEWORKS = s.Schema(
    "frameworks",
    "This engine beside other frameworks: greedy generation, same prompts and lengths (P1-1.3)",
    (
        *_POINT,
        s.integer("n", "", "recorded runs"),
        *_runs("decode_tokens_per_s", "tokens/s", "decode speed"),
        *_runs("total_tokens_per_s", "tokens/s", "generated tokens by the whole time"),
        *_runs("ttft_ms", "ms", "time to the first token"),
        *_runs("tpot_ms", "ms", "time per token after the first"),
        s.maybe("ember_ratio", "", "Ember's decode speed over this framework's, median of rounds"),
        s.maybe("ember_ratio_min", "", "least of the rounds"),
        s.maybe("ember_ratio_max", "", "greatest of the rounds"),
        s.maybe("tokens_equal_share", "fraction", "least of the rounds"),
        s.text("caveats", "in what the row differs from Ember's", nullable=True),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework"),
)
