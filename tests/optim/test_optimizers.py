import pytest
import torch

from ember.optim.muon import Muon
from ember.optim.optimizers import apply_gradients, linear_rate, make_optimizers
from tests.optim.test_lm import fresh

OPTIONS = {"outer_factor": 6.0, "weight_decay": 0.1, "betas": (0.9, 0.99)}


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_one_group_and_moves_at_its_rate(kind):
    decoder = fresh()
    optimizers = make_optimizers(decoder, kind, **OPTIONS)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in decoder.parameters()}
    assert len(parameters) == len(list(decoder.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    layers = {id(p) for n, p in decoder.named_parameters() if n.startswith("layers.")}
    assert decayed == {i for i in layers if i in {id(p) for p in parameters if p.ndim == 2}}
    assert isinstance(optimizers[0], Muon) == (kind == "muon")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    before = decoder.embed_tokens.weight.detach().clone()
    apply_gradients(optimizers, 1e-3)
    # AdamW's first step is as long as its rate.
    moved = (decoder.embed_tokens.weight - before).abs()
    rate = 6e-3 if kind == "muon" else 1e-3
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in parameters)


def test_rate_rises_falls_and_keeps_a_floor():
    rates = [linear_rate(step, 100, 1.0, 10, 0.05) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert linear_rate(0, 10, 1.0, 0, 0.0) == 1.0
