"""StreamingLLM: sinks and a window, pruned at each token (Xiao et al., 2309.17453)."""

from dataclasses import dataclass, field

from ember.streaming.method import Method


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Method):
    """Sinks and a sliding window."""

    name = "streaming_llm"
    improves = "none: the reference at equal peak"

    compression_interval: int = field(default=1, init=False)
