"""Optimizers of a decoder by parameter group, steps with them, and the learning rate's schedule."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ember.model.decoder import Decoder
from ember.optim.loop import Diverged
from ember.optim.muon import Muon

OPTIMIZERS = ("muon", "adamw")


def make_optimizers(
    decoder: Decoder,
    kind: str,
    *,
    outer_factor: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """With "muon", Muon for the matrices inside the layers, and AdamW at `outer_factor` times the
    rate for embeddings, head, norms and biases; with "adamw", AdamW for all at one rate.

    Weight decay acts on the matrices alone. `apply_gradients` sets the rate.
    """
    inner, outer = [], []
    for name, parameter in decoder.named_parameters():
        (inner if parameter.ndim == 2 and name.startswith("layers.") else outer).append(parameter)
    muon = kind == "muon"
    factor = outer_factor if muon else 1.0
    matrices = {"params": inner, "weight_decay": weight_decay, "factor": 1.0}
    others = {"params": outer, "weight_decay": 0.0, "factor": factor}
    groups = [others] if muon else [matrices, others]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    return [Muon([matrices], lr=0.0), adamw] if muon else [adamw]


def apply_gradients(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """One step at a learning rate, times each group's `factor`; gradients are dropped after it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Learner:
    """A task of the loop that trains one module: its steps, and what is saved of it."""

    def __init__(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]):
        self.module, self.optimizers = module, optimizers
        self.device = next(module.parameters()).device

    def learn(self, loss: Tensor, rate: float, at: str, clip: float = 1.0) -> float:
        """One step down a loss, gradients clipped to the norm `clip`; the loss as a number.

        Raises `Diverged`, saying `at` which step, where loss or gradient is not finite.
        """
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), clip).item()
        if not (math.isfinite(value := loss.item()) and math.isfinite(norm)):
            raise Diverged(
                f"training diverged at {at}: loss {value}, gradient norm {norm}, learning rate "
                f"{rate:.2e}.\nLower training.learning_rate or raise training.warmup_steps."
            )
        apply_gradients(self.optimizers, rate)
        return value

    def state_dict(self) -> dict:
        optimizers = [one.state_dict() for one in self.optimizers]
        return {"model": self.module.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)


def linear_rate(
    step: int, steps: int, peak: float, warmup_steps: int, final_fraction: float
) -> float:
    """Learning rate of a step (0-based): a linear rise to `peak`, then a linear fall.

    It never falls below `final_fraction` of the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = (steps - step) / max(1, steps - warmup_steps)
    return peak * max(left, final_fraction)
