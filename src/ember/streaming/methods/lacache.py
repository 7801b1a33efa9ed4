"""LaCache's ladder: each layer drops another stretch, so that every token stays in some layers."""

from dataclasses import dataclass
from typing import ClassVar

from ember.streaming.method import BadMethod, Method, whole


@dataclass(frozen=True, kw_only=True)
class LaCache(Method):
    """Between sinks and the newest `recent` tokens a layer drops one stretch (round the end), which
    lies further on the deeper the layer (after Shi et al., 2507.14204: the pattern alone)."""

    name: ClassVar[str] = "lacache"
    improves: ClassVar[str] = "perplexity"

    recent: int = 32

    def check(self) -> None:
        whole(self, "recent", 0)
        if self.recent > self.target_size - self.n_sink:
            raise BadMethod(
                f"lacache: recent is {self.recent}, more than the "
                f"{self.target_size - self.n_sink} tokens that a prune keeps; lower it"
            )

    def choose(self, moment, count):
        import torch

        layers = moment.cache.arch.num_layers
        span = moment.length - self.n_sink - self.recent
        place = torch.arange(count, device=moment.tokens.device)
        shift = torch.arange(layers, device=moment.tokens.device) * span // layers
        return self.n_sink + (place + shift[:, None])[:, None] % span  # (L, 1, count)
