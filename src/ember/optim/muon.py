"""Muon: momentum whose update is made orthogonal, for the matrices inside a transformer.

Each step moves a matrix along the orthogonal factor of its momentum, found by five Newton–Schulz
iterations (Jordan et al. 2024); the update is scaled to the root mean square of an AdamW step
(Liu et al. 2025), so that both take the same learning rates. `torch.optim.Muon` computes the same
in bfloat16, which most CPUs emulate; this one stays in the parameters' precision and treats
matrices of one shape as one batch.
"""

import torch
from torch import Tensor

COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 5


class Muon(torch.optim.Optimizer):
    """For matrices only. `weight_decay` is decoupled, as in AdamW."""

    def __init__(self, params, lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One step; every parameter needs a gradient."""
        for group in self.param_groups:
            batches: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                update = self._direction(parameter, group["momentum"])
                wide = update if update.shape[0] <= update.shape[1] else update.mT
                batches.setdefault(tuple(wide.shape), []).append((parameter, wide))
            for (_, columns), members in batches.items():
                updates = orthogonal(torch.stack([wide for _, wide in members]))
                rate = 0.2 * columns**0.5 * group["lr"]
                for (parameter, wide), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(
                        update if wide.shape == parameter.shape else update.mT, alpha=-rate
                    )

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of the gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U·Vᵀ of each matrix U·S·Vᵀ in (N, rows <= columns): singular values in 0.7 … 1.2."""
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        x = polynomial @ x
    return x
