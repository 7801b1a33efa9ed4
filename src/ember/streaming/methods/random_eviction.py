"""Random eviction: how much of a method's gain any choice would have."""

from dataclasses import dataclass

from ember.streaming.ranking import RankingMethod


@dataclass(frozen=True, kw_only=True)
class RandomEviction(RankingMethod):
    """Any tokens between the sinks and the newest ones, drawn anew at each prune."""

    name = "random_eviction"
    improves = "none: a reference"

    n_sink: int = 4
    recent: int = 16
    seed: int = 0

    def scores(self, moment):
        import torch

        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + moment.step)
        return torch.rand((1, 1, moment.length), generator=draw).to(moment.tokens.device)
