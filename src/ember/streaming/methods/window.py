"""The newest tokens alone, without sinks: what fails on models that have them."""

from dataclasses import dataclass, field

from ember.streaming.method import Method


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Method):
    """A sliding window, pruned at each token."""

    name = "window"
    improves = "none: a reference"

    n_sink: int = field(default=0, init=False)
    compression_interval: int = field(default=1, init=False)
