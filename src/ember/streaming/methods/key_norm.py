"""Key norm: the tokens whose keys are longest (Devoto et al., 2406.11430)."""

from dataclasses import dataclass
from typing import ClassVar

from ember.streaming.ranking import RankingMethod


@dataclass(frozen=True, kw_only=True)
class KeyNorm(RankingMethod):
    """Short keys get much attention, so long ones go; norms are averaged over heads."""

    name: ClassVar[str] = "key_norm"
    improves: ClassVar[str] = "perplexity"

    def scores(self, moment):
        return -moment.cache.raw.norm(dim=-1).mean(2)
