"""Key norm: the tokens whose keys are longest (Devoto et al., 2406.11430)."""

from ember.streaming.ranking import RankingMethod


class KeyNorm(RankingMethod):
    """Short keys get much attention, so long ones go; norms are averaged over heads."""

    name = "key_norm"
    improves = "perplexity"

    def scores(self, moment):
        return -moment.cache.raw.norm(dim=-1).mean(2)
