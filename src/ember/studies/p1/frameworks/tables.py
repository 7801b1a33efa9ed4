"""Tables of this engine beside other frameworks: single runs, and their summary."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

_POINT = (
    Column("point", "str", "", "model and lengths that are compared"),
    Column("framework", "str", "", "name in p1.peers.frameworks"),
    Column("prompt_tokens", "int", "tokens", "prompt length"),
    Column("generated_tokens", "int", "tokens", "new tokens, the same for all: none stops early"),
    Column("batch", "int", "sequences", "prompts at once"),
)
# What makes rows not like for like.
_CAVEATS = (
    Column("versions", "str", "", "of the framework and what it rests on", nullable=True),
    Column("threads", "int", "", "CPU threads it may use", nullable=True),
    Column(
        "decode_threads",
        "int",
        "",
        "threads of single-token steps, where the framework says so",
        nullable=True,
    ),
    Column("weights_format", "str", "", "what the framework read", nullable=True),
    Column("gguf_sha256", "str", "", "hash of the GGUF file, where it was read", nullable=True),
    Column("kv_cache", "str", "", "kind of KV cache", nullable=True),
    Column("kv_dtype", "str", "", "number format of the KV cache", nullable=True),
    Column(
        "ttft_until",
        "str",
        "",
        "what the time to the first token includes: until its logits are there, or the token",
        nullable=True,
    ),
    Column("load_s", "float", "s", "loading the model, not in any speed", nullable=True),
    Column(
        "first_run_s",
        "float",
        "s",
        "the first unrecorded generation: with compilation and capture, which no speed includes",
        nullable=True,
    ),
    Column("same_weights", "bool", "", "whether the weights are those Ember ran", nullable=True),
)
_MACHINE = (
    Column("device", "str", "", "where it ran"),
    Column("dtype", "str", "", "number format asked for"),
    Column("model", "str", "", "name of the model"),
    Column("step_bytes", "int", "bytes", "weights and mean KV that one decoding step reads"),
    Column(
        "read_gb_s",
        "float",
        "GB/s",
        "read bandwidth: best of sums and matrix-vector products before and between the rounds",
        nullable=True,
    ),
    Column(
        "limit_tokens_per_s",
        "float",
        "tokens/s",
        "read_gb_s / step_bytes; null where these fit into the last cache: memory is no limit then",
        nullable=True,
    ),
    Column(
        "load_before",
        "float",
        "",
        "load average of the machine before the frameworks started: above 0, others were at work",
        nullable=True,
    ),
    WEIGHTS,
    EVIDENCE,
    STATUS,
    REASON,
)

FRAMEWORK_RUNS = Schema(
    "framework_runs",
    "Greedy generation of the same prompts by this engine and others, in turns",
    (
        *_POINT,
        Column("repeat", "int", "", "round: every framework runs once, first another each time"),
        Column("ttft_ms", "float", "ms", "time to the first token", nullable=True),
        Column("decode_ms", "float", "ms", "from the first token to the last", nullable=True),
        Column("total_ms", "float", "ms", "the whole generation", nullable=True),
        Column("tpot_ms", "float", "ms", "decode_ms by the tokens after the first", nullable=True),
        Column("decode_tokens_per_s", "float", "tokens/s", "1000 / tpot_ms", nullable=True),
        Column(
            "total_tokens_per_s", "float", "tokens/s", "generated_tokens / total_ms", nullable=True
        ),
        Column(
            "ember_ratio",
            "float",
            "",
            "Ember's decode_tokens_per_s over this framework's in the same round",
            nullable=True,
        ),
        Column(
            "tokens_equal_share",
            "float",
            "fraction",
            "leading tokens that equal Ember's in the same round; null for other weights",
            nullable=True,
        ),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework", "repeat"),
)


def _spread(name: str, unit: str, meaning: str) -> tuple[Column, ...]:
    return (
        Column(f"{name}_mean", "float", unit, f"{meaning}, mean of the runs", nullable=True),
        Column(f"{name}_std", "float", unit, "standard deviation (n - 1)", nullable=True),
        Column(f"{name}_cv", "float", "", "std / mean", nullable=True),
    )


FRAMEWORKS = Schema(
    "frameworks",
    "This engine beside other frameworks: greedy generation, same prompts and lengths (P1-1.3)",
    (
        *_POINT,
        Column("n", "int", "", "recorded runs"),
        *_spread("decode_tokens_per_s", "tokens/s", "decode speed"),
        *_spread("total_tokens_per_s", "tokens/s", "generated tokens by the whole time"),
        *_spread("ttft_ms", "ms", "time to the first token"),
        *_spread("tpot_ms", "ms", "time per token after the first"),
        Column(
            "ember_ratio",
            "float",
            "",
            "Ember's decode speed over this framework's in the same round, median",
            nullable=True,
        ),
        Column("ember_ratio_min", "float", "", "least of the rounds", nullable=True),
        Column("ember_ratio_max", "float", "", "greatest of the rounds", nullable=True),
        Column("tokens_equal_share", "float", "fraction", "least of the rounds", nullable=True),
        Column("caveats", "str", "", "in what the row differs from Ember's", nullable=True),
        *_CAVEATS,
        *_MACHINE,
    ),
    key=("point", "framework"),
)
