"""Lazy pruning: sinks and a window, pruned once in `compression_interval` tokens."""

from ember.streaming.method import Method


class LazyPrune(Method):
    """Cheaper than StreamingLLM, and many tokens vanish at once."""

    name = "lazy_prune"
    improves = "TPOT"
