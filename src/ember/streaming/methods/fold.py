"""Mass-matched folding: what a prune drops stays as one or two slots a head, in closed form.

Derivation in docs/streaming.md.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ember.streaming.method import Method, whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fold(Method):
    """Lazy pruning whose dropped tokens are folded into `slots` synthetic ones, weighted by what
    the last `queries` queries gave them. With `carry` the earlier slots are folded in as well, so
    that nothing is ever lost whole; without, a slot lives for one period."""

    name = "fold"
    improves = "spike"

    slots: int = 1
    queries: int = 1
    carry: bool = False

    @property
    def observes(self) -> int:
        return self.queries

    @property
    def reserved(self) -> int:
        return self.slots

    def check(self) -> None:
        whole(self, "slots", 1)
        whole(self, "queries", 1)

    def apply(self, moment, places):
        """`places` are the oldest slots, one fewer for each that is to be folded into."""
        import torch

        cache, first = moment.cache, self.n_sink
        stop = first + places.shape[-1] + self.slots
        parts = torch.arange(first, stop, device=places.device).tensor_split(self.slots)
        stays = []
        for part in parts:
            start, end = int(part[0]), int(part[-1]) + 1
            mass = cache.recent[..., start:end]  # (L, B, Hq, n)
            if not self.carry:
                mass = mass * (cache.ids[:, :, None, start:end] >= 0)
            bias = None if cache.bias is None else cache.bias[..., start:end]
            k, v = cache.k[:, :, :, start:end], cache.v[:, :, :, start:end]
            cache.fold(end - 1, *folded(k, v, mass, bias))
            stays.append(end - 1)
        gone = torch.tensor([n for n in range(first, stop) if n not in stays])
        cache.drop(gone.to(places.device))


def folded(
    k: "Tensor", v: "Tensor", mass: "Tensor", bias: "Tensor | None" = None
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """One key, value and bias for n tokens: k, v (…, Hkv, n, D), mass and bias (…, Hq, n).

    With w = mass / Σ mass: k̃ = Σ w k, ṽ = Σ w v and b̃ = H(w) + Σ w b, H the entropy in nats. For
    the query of which the mass is, exp(q·k̃ / √D + b̃) ṽ is the sum of the tokens' own terms, and
    the gradient of its mass in q is theirs. A KV head of several query heads takes their mean w.
    """
    groups = mass.shape[-2] // k.shape[-3]
    mass = mass.clamp_min(0)
    # No mass at all (it underflowed): any weights do, say equal ones.
    mass = mass + (mass.sum(-1, keepdim=True) == 0)
    w = mass / mass.sum(-1, keepdim=True)  # (…, Hq, n)
    w = w.unflatten(-2, (-1, groups)).mean(-2)  # (…, Hkv, n)
    entropy = -(w * w.clamp_min(1e-30).log()).sum(-1)  # (…, Hkv)
    extra = entropy.repeat_interleave(groups, -1)
    if bias is not None:
        extra = extra + (w.repeat_interleave(groups, -2) * bias).sum(-1)
    weights = w.to(k.dtype)[..., None]
    return (weights * k).sum(-2), (weights * v).sum(-2), extra
