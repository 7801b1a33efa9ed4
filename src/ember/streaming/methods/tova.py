"""TOVA: the tokens to which the last query attends least (Oren et al., 2401.06104)."""

from ember.streaming.ranking import RankingMethod


class Tova(RankingMethod):
    """Attention of the last query, averaged over heads; sinks must find themselves."""

    name = "tova"
    improves = "perplexity"
    observes = 1

    def scores(self, moment):
        return moment.cache.recent.mean(2)
