"""TOVA: the tokens to which the last query attends least (Oren et al., 2401.06104)."""

from dataclasses import dataclass
from typing import ClassVar

from ember.streaming.ranking import RankingMethod


@dataclass(frozen=True, kw_only=True)
class Tova(RankingMethod):
    """Attention of the last query, averaged over heads; sinks must find themselves."""

    name: ClassVar[str] = "tova"
    improves: ClassVar[str] = "perplexity"
    observes: ClassVar[int] = 1

    def scores(self, moment):
        return moment.cache.recent.mean(2)
