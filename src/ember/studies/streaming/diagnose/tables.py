"""Tables of the time per token under eviction (S-0, S-2)."""

from ember.records import schema as s
from ember.studies.streaming.quality.tables import METHOD, POINT

PATH = (
    s.text("path", "what ran the layers: kernels (recorded as a graph or not), compiled or eager"),
    s.text("no_fast_path", "why the fast path does not run the method", nullable=True),
)
RATIO = tuple(
    s.maybe(f"{name}{end}", "", said)
    for name, over in (
        ("tpot", "the fastest lazy pruning's on the same path"),
        ("period", "lazy pruning's with the same period on the same path"),
    )
    for end, said in (
        ("_ratio", f"steady TPOT over {over}, median over repeats"),
        ("_ratio_low", "least repeat"),
        ("_ratio_high", "greatest repeat"),
    )
)

LATENCY_RUNS = s.Schema(
    "streaming_latency_runs",
    "Time of every token of single streams",
    (
        POINT[1],
        *METHOD,
        *PATH,
        s.integer("repeat", "", "number of the run"),
        s.number("prefill_ms", "ms", "the first tokens, fed at once: time to the first token"),
        s.Column("token_ms", "list[float]", "ms", "of each decoded token, eviction included"),
        s.Column("drop_steps", "list[int]", "tokens", "decoded tokens before each drop, 1 or more"),
        s.maybe("peak_memory_mb", "MB", "peak of the device's memory; null on the CPU"),
        *s.MEASURED_ON,
    ),
    key=("point", "path", "repeat"),
)

STREAMING_LATENCY = s.Schema(
    "streaming_latency",
    "Time per token under eviction",
    (
        POINT[1],
        *METHOD,
        *PATH,
        s.integer("n", "", "runs"),
        s.integer("tokens", "tokens", "decoded tokens of a run"),
        s.number("ttft_ms", "ms", "time to the first token, median over runs"),
        s.number("prefill_s", "s", "the same as a phase"),
        s.number("total_s", "s", "prefill and decoding, median over runs"),
        s.number("tpot_ms", "ms", "decode time / decoded tokens, median over runs"),
        s.number("steady_tpot_ms", "ms", "without the first tokens, median over runs"),
        s.number("steady_tpot_ms_min", "ms", "least run"),
        s.number("steady_tpot_ms_max", "ms", "greatest run"),
        *RATIO,
        s.number("token_ms_p50", "ms", "median over the steady tokens of all runs"),
        s.number("token_ms_p90", "ms", "90th percentile of them"),
        s.number("token_ms_p99", "ms", "99th percentile of them"),
        s.number("token_ms_max", "ms", "slowest of them"),
        s.maybe("prune_step_ratio", "", "median step that drops / median of the others"),
        s.maybe("peak_memory_mb", "MB", "greatest of the runs; null on the CPU"),
        *s.MEASURED_ON,
    ),
    key=("point", "path"),
)
