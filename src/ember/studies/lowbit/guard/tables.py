"""Table of how far memory overshoots the guard's limit (L-7)."""

from ember.records import schema as s

LOWBIT_GUARD = s.Schema(
    "lowbit_guard",
    "Memory of a growing process above its limit when the guard had ended it, by polling interval",
    (
        s.number("poll_s", "s", "between two polls"),
        s.integer("n", "", "runs"),
        s.number("limit_mb", "MB", "limit of the process"),
        *s.spread("rate_mb_s", "MB/s", "how fast it grew", ("median", "min", "max")),
        *s.spread("over_mb", "MB", "what it had above the limit at last", ("median", "min", "max")),
        s.number("bound_mb", "MB", "rate times polling interval: what it can grow by unseen"),
        *s.spread("poll_ms", "ms", "mean time of a poll", ("median", "min", "max")),
        s.EVIDENCE,
    ),
    key=("poll_s",),
)
