"""`adaptive`: a prune waits for a token after which the model is sure what comes."""

from dataclasses import dataclass

from ember.streaming.method import BadMethod, Method


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """From the fraction `early` of the period on the first token whose prediction has less entropy
    than the stream's median so far is pruned after, at the latest at the peak."""

    name = "adaptive"
    improves = "extremes"
    needs = frozenset({"entropy"})
    one_row = True

    early: float = 0.75

    def check(self) -> None:
        if not 0 < self.early <= 1:
            raise BadMethod(f"adaptive: early is {self.early!r}; set it above 0, to at most 1")

    def room(self, moment):
        return max(1, self._earliest - moment.length)

    def drop(self, moment):
        if moment.length < self._earliest:
            return None
        known = moment.entropy[:, : moment.step]
        if moment.length < self.peak and bool(known[:, -1] >= known.median(1).values):
            return None
        return self.choose(moment, moment.length - self.target_size)

    @property
    def _earliest(self) -> int:
        return self.target_size + max(1, round(self.early * self.growth))
