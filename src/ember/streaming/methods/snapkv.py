"""SnapKV's score at decoding: mass of the last queries, smoothed (Li et al., 2404.14469)."""

from dataclasses import dataclass, field

from ember.streaming.method import whole
from ember.streaming.ranking import RankingMethod


@dataclass(frozen=True, kw_only=True)
class SnapKV(RankingMethod):
    """Attention of the last `window_size` queries (of a shorter period, of all its queries),
    averaged over heads and over `kernel_size` neighbours; those tokens themselves stay."""

    name = "snapkv"
    improves = "perplexity"

    recent: int = field(default=0, init=False)  # those that look
    window_size: int = 32
    kernel_size: int = 5

    @property
    def observes(self) -> int:
        return self.window_size

    def check(self) -> None:
        whole(self, "window_size", 1)
        whole(self, "kernel_size", 1)
        object.__setattr__(self, "recent", self.window_size)
        super().check()

    def scores(self, moment):
        import torch.nn.functional as F

        mass = moment.cache.recent[..., : moment.length].mean(2)
        pad = self.kernel_size // 2
        return F.avg_pool1d(mass, self.kernel_size, stride=1, padding=pad, count_include_pad=False)[
            ..., : moment.length
        ]
