"""Tables of this engine beside other frameworks: single runs, and their summary."""

from ember.records import schema as s

_POINT = (
    s.text("point", "model and lengths that are compared"),
    s.text(
        "workload",
        "rollout: one prompt, greedy; loop: a round's prompts and candidates, temperature 1",
        values=("rollout", "loop"),
    ),
    s.text("framework", "name in p1.frameworks.peers"),
    s.integer("prompt_tokens", "tokens", "prompt length"),
    s.integer("generated_tokens", "tokens", "of each candidate, the same for all: none stops"),
    s.integer("prompts", "", "of a call, fewer for slow frameworks; new in every call"),
    s.integer("candidates", "", "of each prompt"),
)
_SPEED = "a rollout's decode_, the loop's total_tokens_per_s"
# What makes rows not like for like.
_CAVEATS = (
    s.text("versions", "of the framework and what it rests on", nullable=True),
    s.text("attention", "implementation of attention, as the framework names it", nullable=True),
    s.integer("threads", "", "CPU threads it may use", nullable=True),
    s.integer("decode_threads", "", "of single-token steps, where it says so", nullable=True),
    s.text("weights_format", "what the framework read", nullable=True),
    s.text("gguf_sha256", "hash of the GGUF file, where it was read", nullable=True),
    s.text("kv_cache", "kind of KV cache", nullable=True),
    s.text("kv_dtype", "number format of the KV cache", nullable=True),
    s.text("prompt_kv", "prefix cache, shared by candidates, or of each candidate", nullable=True),
    s.text("ttft_by", "how ttft_ms is taken, the same way for all"),
    s.maybe("load_s", "s", "loading the model, not in any speed"),
    s.maybe("first_run_s", "s", "the first warm-up, with compilation and capture"),
    s.flag("same_weights", "whether the weights are those Ember ran", nullable=True),
)
_MACHINE = (
    s.DEVICE,
    s.text("dtype", "number format asked for"),
    s.MODEL,
    s.integer("step_bytes", "bytes", "weights and mean KV of a rollout's step", nullable=True),
    s.maybe("read_gb_s", "GB/s", "read bandwidth, the best before and between rounds"),
    s.maybe("limit_tokens_per_s", "tokens/s", "read_gb_s / step_bytes; null if in cache"),
    s.maybe("load_before", "", "load average before the frameworks started"),
    s.WEIGHTS,
    s.EVIDENCE,
    *s.OUTCOME,
)

FRAMEWORK_RUNS = s.Schema(
    "framework_runs",
    "Generation from the same prompts by this engine and others, in turns",
    (
        *_POINT,
        s.integer("repeat", "", "recorded round: every framework runs once"),
        s.integer("place", "", "in the order of the round, which begins with another each time"),
        s.maybe("ttft_ms", "ms", "time until every candidate has its first token"),
        s.maybe("ttft_per_prompt_ms", "ms", "ttft_ms / prompts"),
        s.maybe("total_ms", "ms", "the whole generation, another call than ttft_ms"),
        s.maybe("tpot_ms", "ms", "of a rollout: (total_ms - ttft_ms) / tokens after the first"),
        s.maybe("decode_tokens_per_s", "tokens/s", "of a rollout: 1000 / tpot_ms"),
        s.maybe("total_tokens_per_s", "tokens/s", "generated tokens of all by total_ms"),
        s.maybe("ember_ratio", "", "Ember's speed over this one's, same round: " + _SPEED),
        s.maybe("tokens_equal_share", "fraction", "leading tokens that are Ember's, if greedy"),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "workload", "framework", "repeat"),
)


def _runs(name: str, unit: str, meaning: str) -> tuple[s.Column, ...]:
    return s.spread(name, unit, meaning, ("median", "min", "max", "mean", "std", "cv"), s.maybe)


def _range(name: str, unit: str, meaning: str) -> tuple[s.Column, ...]:
    return s.spread(name, unit, meaning, ("median", "min", "max"), s.maybe)


FRAMEWORKS = s.Schema(
    "frameworks",
    "This engine beside other frameworks: one rollout, and the loop's workload (P1-1.3)",
    (
        *_POINT,
        s.integer("n", "", "recorded runs"),
        *_runs("decode_tokens_per_s", "tokens/s", "decode speed of a rollout"),
        *_runs("total_tokens_per_s", "tokens/s", "generated tokens by the whole time"),
        *_runs("ttft_ms", "ms", "time until every candidate has its first token"),
        *_range("ttft_per_prompt_ms", "ms", "ttft_ms / prompts"),
        *_range("tpot_ms", "ms", "time per token after it"),
        s.maybe("ember_ratio", "", f"Ember's speed over this one's, median of rounds: {_SPEED}"),
        s.maybe("ember_ratio_min", "", "least of the rounds"),
        s.maybe("ember_ratio_max", "", "greatest of the rounds"),
        s.maybe("tokens_equal_share", "fraction", "least of the rounds"),
        s.text("caveats", "in what the row differs from Ember's", nullable=True),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "workload", "framework"),
)
