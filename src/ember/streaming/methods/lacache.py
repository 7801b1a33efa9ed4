"""LaCache's ladder: each layer drops another stretch, so that every token stays in some layers."""

from dataclasses import dataclass

from ember.streaming.ranking import RankingMethod


@dataclass(frozen=True, kw_only=True)
class LaCache(RankingMethod):
    """Between sinks and the newest `recent` tokens a layer drops one stretch (round the end), which
    lies further on the deeper the layer (after Shi et al., 2507.14204: the pattern alone)."""

    name = "lacache"
    improves = "perplexity"

    n_sink: int = 4
    recent: int = 32

    def scores(self, moment):
        import torch

        layers = moment.cache.arch.num_layers
        span = moment.length - self.n_sink - self.recent
        place = torch.arange(moment.length, device=moment.tokens.device) - self.n_sink
        shift = torch.arange(layers, device=moment.tokens.device) * span // layers
        return (place - shift[:, None])[:, None] % span  # of a layer's stretch the lowest
