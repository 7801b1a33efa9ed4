"""Lazy pruning: sinks and a window, pruned once in `compression_interval` tokens."""

from dataclasses import dataclass
from typing import ClassVar

from ember.streaming.method import Method


@dataclass(frozen=True, kw_only=True)
class LazyPrune(Method):
    """Cheaper than StreamingLLM, and many tokens vanish at once."""

    name: ClassVar[str] = "lazy_prune"
    improves: ClassVar[str] = "TPOT"
