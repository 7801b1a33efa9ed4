"""Tables of what each point costs in nats: by stream, and summarised (S-0, S-2, S-3)."""

from ember.records import schema as s

POINT = (
    s.text("corpus", "role of the corpus", values=("long", "short")),
    s.text("point", "method with its parameters"),
)
METHOD = (
    s.text("method", "eviction method"),
    s.integer("peak", "tokens", "the most tokens that a query sees"),
    s.integer("compression_interval", "tokens", "from one prune to the next (R)"),
    s.integer("n_sink", "tokens", "first tokens that are always kept"),
    s.integer("window", "tokens", "newest tokens that no prune touches", nullable=True),
)

QUALITY_RUNS = s.Schema(
    "streaming_quality_runs",
    "Losses of every token of every stream, and when what was dropped",
    (
        *POINT,
        *METHOD,
        s.integer("stream", "", "number of the stream"),
        s.Column("nll", "list[float]", "nats", "of each token after the first"),
        s.Column("drop_steps", "list[int]", "tokens", "tokens fed before each drop"),
        s.Column("drop_sizes", "list[int]", "tokens", "tokens of each drop"),
        s.integer("visible_min", "tokens", "least KV length from the first full cache on"),
        s.number("visible_mean", "tokens", "mean KV length from there on"),
        s.integer("visible_max", "tokens", "greatest KV length"),
        s.integer("calls", "", "forwards of all streams together"),
        s.number("copied_bytes", "B/token", "moved or rotated anew by the cache"),
        s.text("improves", "the indicator that the method is meant to improve"),
        *s.MEASURED_ON,
    ),
    key=("corpus", "point", "stream"),
)


def _delta(name: str, what: str) -> tuple[s.Column, ...]:
    return s.estimate(name, "nats/token", f"loss above {what}, paired by stream", kind=s.maybe)


STREAMING_QUALITY = s.Schema(
    "streaming_quality",
    "Eviction methods at equal peak visible length",
    (
        *POINT,
        *METHOD,
        s.integer("streams", "streams", "that were measured"),
        s.integer("tokens", "tokens", "scored of each: those after the cache was first full"),
        s.number("nll", "nats/token", "mean loss"),
        s.number("ppl", "", "perplexity"),
        *_delta("delta", "StreamingLLM's (R = 1) at the same peak"),
        s.maybe("ppl_change", "fraction", "perplexity above that, relative"),
        *_delta("to_full", "full attention's, where it fits the trained context"),
        *_delta("spike_peak", "R = 1 in the worst bin of steps since a prune"),
        s.integer(
            "spike_width", "tokens", "steps after a prune that cost more than R = 1", nullable=True
        ),
        *_delta("spike_area", "R = 1, summed over a period"),
        s.text(
            "diagnosis",
            "spike: the first steps after a prune cost more than R = 1; window drift: they do not, "
            "and the whole does; none: no difference; null where nothing is claimed",
            values=("spike", "window drift", "none"),
            nullable=True,
        ),
        s.maybe("drop_size_mean", "tokens", "mean of a drop"),
        s.maybe("drop_size_median", "tokens", "median of a drop"),
        s.maybe("drop_size_p99", "tokens", "99th percentile of 100 drops or more"),
        s.maybe("drop_size_max", "tokens", "greatest drop"),
        s.integer("visible_min", "tokens", "least KV length from the first full cache on"),
        s.number("visible_mean", "tokens", "mean KV length from there on"),
        s.integer("visible_max", "tokens", "greatest KV length"),
        s.number("copied_bytes", "B/token", "moved or rotated anew by the cache"),
        s.text("improves", "the indicator that the method is meant to improve"),
        s.text("improved", "against lazy pruning with the same peak and period", nullable=True),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("corpus", "point"),
)

STREAMING_SPIKES = s.Schema(
    "streaming_spikes",
    "Loss above StreamingLLM's by steps since the last prune, paired by token",
    (
        *POINT,
        *METHOD,
        s.integer("since", "tokens", "first step of the bin, the prune's is 0"),
        s.integer("until", "tokens", "first step after the bin"),
        s.integer("streams", "streams", "that were measured"),
        *s.estimate("delta", "nats/token", "mean over prunes and streams", kind=s.maybe),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("corpus", "point", "since"),
)
