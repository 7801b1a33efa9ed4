"""Full attention: nothing is dropped. The reference where the stream fits the trained context."""

from dataclasses import dataclass
from typing import ClassVar

from ember.streaming.method import Method


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Everything is kept; `peak` is the streams' length."""

    name: ClassVar[str] = "full"
    improves: ClassVar[str] = "none: a reference"
    prunes: ClassVar[bool] = False

    def drop(self, moment):
        return None
