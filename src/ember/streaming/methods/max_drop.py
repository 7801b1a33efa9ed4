"""`max_drop`: no prune drops more than so many tokens; the rest goes in the next steps."""

from dataclasses import dataclass

from ember.streaming.method import Method, whole


@dataclass(frozen=True, kw_only=True)
class MaxDrop(Method):
    """Lazy pruning in portions: while a prune lasts, each step adds a token and drops up to
    `max_drop`, until the target is reached."""

    name = "max_drop"
    improves = "drop_size_max"

    max_drop: int | None = None  # None: all at once

    def check(self) -> None:
        if self.max_drop is not None:
            whole(self, "max_drop", 2)  # with 1 a prune would never catch up

    def room(self, moment):
        return 1 if moment.pruning else super().room(moment)

    def drop(self, moment):
        if not moment.pruning and moment.length < self.peak:
            return None
        count = moment.length - self.target_size
        return self.choose(moment, min(count, self.max_drop or count))
