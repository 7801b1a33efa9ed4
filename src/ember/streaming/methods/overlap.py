"""`overlap`: the newest tokens of what a prune drops stay until half of the next period."""

from dataclasses import dataclass

from ember.streaming.method import BadMethod, Method, oldest, whole


@dataclass(frozen=True, kw_only=True)
class Overlap(Method):
    """A prune in two halves. Kept for ever, the overlap would be no different from a smaller
    compression_interval."""

    name = "overlap"
    improves = "spike"

    overlap: int

    def check(self) -> None:
        whole(self, "overlap", 1)
        if self.overlap >= self.compression_interval:
            raise BadMethod(
                f"overlap: overlap is {self.overlap}, compression_interval "
                f"{self.compression_interval}; set overlap below it, or nothing would be dropped"
            )

    @property
    def growth(self) -> int:
        return max(self.compression_interval, self.overlap + self.compression_interval // 2)

    def room(self, moment):
        return max(1, self._due(moment) - moment.length)

    def drop(self, moment):
        if moment.length < self._due(moment):
            return None
        if moment.pruning:
            return oldest(moment, self.n_sink, self.overlap)
        return oldest(moment, self.n_sink, moment.length - self.target_size - self.overlap)

    def _due(self, moment) -> int:
        """Length at which the next half of a prune comes."""
        if moment.pruning:
            return self.target_size + self.overlap + self.compression_interval // 2
        return self.target_size + self.compression_interval
