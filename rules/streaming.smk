# Streaming: what the rules of eviction methods share.
from ember.streaming import build as eviction

STREAMING_POINTS = eviction.specs_of(conf("streaming"))


def streaming_inputs():
    """The measured model and its corpora by role."""
    corpora = {
        role: inter(f"corpora/{conf('streaming', role, 'corpus')}.parquet")
        for role in ("long", "short")
    }
    return {"model": model_dir(conf("streaming", "model"))} | corpora


def streaming_points(method):
    """The configured points of one method."""
    return [spec for spec in STREAMING_POINTS if spec["name"] == method]


def programme_points():
    """Ids of S-3's eight points."""
    specs = eviction.programme_of(conf("streaming"))
    return [eviction.point_id(eviction.build(spec)) for spec in specs]


def timed_points():
    """The points whose tokens are timed: those of some periods at one peak, and full attention."""
    latency = conf("streaming", "latency")
    return [
        spec
        for spec in STREAMING_POINTS
        if spec["name"] == "full"
        or (
            spec["peak"] == latency["peak"]
            and spec.get("compression_interval", 1)
            in (1, *latency["compression_interval"])
            and not spec.get("absolute")
        )
    ]


def speed_points():
    """The points whose speed is measured on the fast path."""
    return eviction.speed_specs(conf("streaming", "speed"))


def quality_runs():
    """Tables of all methods, one each."""
    names = dict.fromkeys(spec["name"] for spec in STREAMING_POINTS)
    return expand(inter("streaming/quality/runs/{method}.parquet"), method=names)


def quality_basis():
    """Inputs of what compares points by token."""
    return {"runs": quality_runs(), "gate": "results/streaming_gate.parquet"}
