"""Tables of streams on the fast path: time per token, and what each part of it saves (S-0, S-4)."""

from ember.records import schema as s
from ember.studies.streaming.quality.tables import METHOD, POINT

SWITCHES = ("fast path", "CUDA graphs", "fused norm", "fused MLP", "soft ring")
_WHAT = (
    POINT[1],
    *METHOD,
    s.text(
        "path",
        "what ran the layers: kernels (recorded as a graph or not), compiled or eager; "
        "transformers: its own model and its cache of sliding layers; null where nothing ran",
        nullable=True,
    ),
    s.text(
        "off",
        "what was switched off: fast path, the eager decoder and its cache instead; CUDA graphs; "
        "fused norm, sum, residual and norms by torch's operators, products one by one; fused MLP, "
        "activation apart from the product; soft ring, what follows a drop moves down; null: none",
        nullable=True,
        values=SWITCHES,
    ),
)
_LIMIT = (
    s.text(
        "limit_kind",
        "memory: its bandwidth bounds a step; cache: the last cache holds weights and KV, so that "
        "limit and share are null",
        values=("memory", "cache"),
    ),
    s.number("read_gb_s", "GB/s", "read bandwidth of the device, measured in the same run"),
    s.integer("weight_bytes", "bytes", "weights that a step reads"),
)

SPEED_RUNS = s.Schema(
    "streaming_speed_runs",
    "Time of every token of single streams, by method and path, side by side",
    (
        *_WHAT,
        s.integer("repeat", "", "number of the run"),
        s.maybe("prefill_ms", "ms", "the first tokens, fed at once"),
        s.Column("token_ms", "list[float]", "ms", "of each decoded token, drops included"),
        s.Column("drop_steps", "list[int]", "tokens", "decoded tokens before each drop, 1 or more"),
        s.integer("dropped", "tokens", "tokens dropped while decoding", nullable=True),
        s.maybe("copied_bytes", "B/token", "keys and values moved and keys rotated anew"),
        s.maybe("kv_bytes", "bytes", "keys and values that a step reads, mean"),
        s.maybe("memory_mb", "MB", "peak of the device above weights; null on the CPU"),
        *_LIMIT,
        *s.OUTCOME,
        *s.MACHINE,
    ),
    key=("point", "off", "path", "repeat"),
)

STREAMING_SPEED = s.Schema(
    "streaming_speed",
    "Time per token of single streams by method and path, and what each switch saves (S-4)",
    (
        *_WHAT,
        s.integer("n", "", "runs"),
        s.integer("tokens", "tokens", "decoded tokens of a run in the steady state"),
        s.maybe("ttft_ms", "ms", "time to the first token, median over runs"),
        s.maybe("steady_tpot_ms", "ms", "without the first tokens, median over runs"),
        s.maybe("steady_tpot_ms_min", "ms", "least run"),
        s.maybe("steady_tpot_ms_max", "ms", "greatest run"),
        s.maybe("token_ms_p50", "ms", "median over the steady tokens of all runs"),
        s.maybe("token_ms_p90", "ms", "90th percentile of them; null of fewer than ten"),
        s.maybe("token_ms_p99", "ms", "99th percentile of them; null of fewer than a hundred"),
        s.maybe("token_ms_max", "ms", "slowest of them"),
        s.maybe("prune_step_ratio", "", "median step that drops / median of the others"),
        s.maybe("dropped", "tokens/token", "tokens dropped a decoded token"),
        s.maybe("copied_bytes", "B/token", "keys and values moved and keys rotated anew"),
        s.maybe("memory_mb", "MB", "peak of the device above weights; null on the CPU"),
        *_LIMIT,
        s.maybe("kv_bytes", "bytes", "keys and values that a step reads, mean"),
        s.maybe("limit_ms", "ms", "weight_bytes + kv_bytes at read_gb_s"),
        s.maybe("share", "fraction", "limit_ms / steady_tpot_ms: of the bandwidth measured"),
        s.maybe("speedup", "", "Transformers' sliding window's TPOT / this, median over repeats"),
        s.maybe("gain", "fraction", "of TPOT saved where it is on, median over repeats"),
        s.maybe("gain_low", "fraction", "least over repeats"),
        s.maybe("gain_high", "fraction", "greatest over repeats"),
        s.text("verdict", "of a switch: whether even the least gain is stable", nullable=True),
        *s.OUTCOME,
        *s.MACHINE,
    ),
    key=("point", "off", "path"),
)
