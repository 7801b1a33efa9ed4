"""Methods that rank all tokens between sinks and the newest: how they choose."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ember.streaming.method import BadMethod, Method, lowest, whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RankingMethod(Method):
    """A prune drops the tokens of the lowest score, each layer its own.

    The first `n_sink` and the last `recent` tokens are not ranked.
    """

    n_sink: int = 0
    recent: int = 0

    def check(self) -> None:
        whole(self, "recent", 0)
        if self.recent > self.target_size - self.n_sink:
            raise BadMethod(
                f"{self.name}: recent is {self.recent}, more than the "
                f"{self.target_size - self.n_sink} tokens that a prune keeps; lower it"
            )

    def choose(self, moment, count):
        scores = self.scores(moment)[:, :, self.n_sink : moment.length - self.recent]
        return self.n_sink + lowest(scores, count)

    def scores(self, moment) -> "Tensor":
        """Scores (L or 1, B, length or more) of the slots."""
        raise NotImplementedError
