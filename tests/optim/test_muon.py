"""Muon: orthogonal updates, the same as torch's, and a state that can be kept."""

import pytest
import torch

from ember.optim.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 20), (1, 16, 64)])
def test_update_is_nearly_orthogonal(shape):
    torch.manual_seed(0)
    updates = orthogonal(torch.randn(shape))
    values = torch.linalg.svdvals(updates)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_zero_gradient_gives_no_nan():
    assert torch.equal(orthogonal(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


def test_agrees_with_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s)) for s in ((8, 24), (24, 8), (16, 16), (8, 24))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    before = [p.detach().clone() for p in ours]
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = (
        Muon(ours, **settings),
        torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        moved = (mine - start).norm()
        assert moved > 0.1
        # torch iterates in bfloat16.
        assert (mine - other).norm() < 0.03 * moved


def test_state_round_trip_continues_identically():
    def run(interrupt: bool) -> torch.Tensor:
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(6, 9))
        optimizer = Muon([weight], lr=0.01)
        for step in range(6):
            if interrupt and step == 3:
                kept = optimizer.state_dict()
                optimizer = Muon([weight], lr=0.01)
                optimizer.load_state_dict(kept)
            weight.grad = torch.randn(6, 9)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(True), run(False))
