"""Full attention: nothing is dropped. The reference where the stream fits the trained context."""

from ember.streaming.method import Method


class Full(Method):
    """Everything is kept; `peak` is the streams' length."""

    name = "full"
    improves = "none: a reference"
    prunes = False

    def drop(self, moment):
        return None
