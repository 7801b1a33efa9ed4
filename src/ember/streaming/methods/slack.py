"""`slack`: pruned on schedule, and between the prunes never more than so many tokens too long."""

from dataclasses import dataclass

from ember.streaming.method import Method, whole


@dataclass(frozen=True, kw_only=True)
class Slack(Method):
    """Lazy pruning with a bound on the overshoot: a cache that is `slack` tokens beyond its target
    drops one at each step until the prune comes."""

    name = "slack"
    improves = "extremes"

    slack: int

    def check(self) -> None:
        whole(self, "slack", 1)

    @property
    def growth(self) -> int:
        return min(self.slack, self.compression_interval)

    def room(self, moment):
        room = self.peak - moment.length
        if moment.pruned_at is not None:
            room = min(room, moment.pruned_at + self.compression_interval - moment.step)
        return max(1, room)

    def drop(self, moment):
        scheduled = moment.pruned_at is None or (
            moment.step - moment.pruned_at >= self.compression_interval
        )
        full = moment.length == self.peak
        if scheduled and (full or moment.pruned_at is not None):
            return self.choose(moment, moment.length - self.target_size)
        return self.choose(moment, 1) if full else None
