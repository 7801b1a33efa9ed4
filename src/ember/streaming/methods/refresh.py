"""`refresh`: besides sinks and window a few old tokens stay, chosen anew at each prune."""

from dataclasses import dataclass

from ember.streaming.method import BadMethod, lowest, whole
from ember.streaming.methods.max_drop import MaxDrop
from ember.streaming.selector import Selector


@dataclass(frozen=True, kw_only=True)
class Refresh(MaxDrop):
    """`refresh_budget` tokens of all that is older than the window stay: those that the selector
    scores highest. With `max_drop` the others go in portions."""

    name = "refresh"
    improves = "spike and drift"

    refresh_budget: int
    selector: Selector

    @property
    def needs(self) -> frozenset[str]:
        return self.selector.needs

    @property
    def reserved(self) -> int:
        return self.refresh_budget

    def check(self) -> None:
        super().check()
        whole(self, "refresh_budget", 1)
        if not isinstance(self.selector, Selector):
            raise BadMethod(f"refresh: {self.selector!r} is no selector; name one")

    def choose(self, moment, count):
        old = moment.length - self.n_sink - self.window  # slots after the sinks
        scores = self.selector.scores(moment, self.n_sink, self.n_sink + old)
        return self.n_sink + lowest(scores, count)
