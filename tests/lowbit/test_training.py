"""Packed weights that train themselves: against Adam on a master copy, and what vanishes where."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ember.formats import nvfp4
from ember.lowbit.training import (
    ARMS,
    Control,
    TrainedLinear,
    bytes_by_kind,
    make_trainable,
    quantise_stochastically,
)
from ember.model.packed import LinearNVFP4
from ember.optim.loop import BadTraining, Diverged
from ember.optim.loss import next_token_loss
from tests.tiny import wild

N, K, ROWS = 24, 64, 10


def layer(arm: str, seed: int = 0, **options) -> TrainedLinear:
    torch.manual_seed(seed)
    dense = nn.Linear(K, N)
    control = Control(ARMS[arm], generator=torch.Generator().manual_seed(seed), **options)
    return TrainedLinear(LinearNVFP4.of(dense.weight, dense.bias, headroom=1.2), control)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(100 + seed)
    return torch.randn(ROWS, K, requires_grad=True), torch.randn(ROWS, N)


def step(linear: TrainedLinear, seed: int, rate: float) -> torch.Tensor:
    x, wanted = batch(seed)
    with linear.control.update(rate):
        F.mse_loss(linear(x), wanted).backward()
    return x.grad


def test_a_master_copy_is_adamw_through_the_quantised_weight():
    linear = layer("master_float32", weight_decay=0.1, chunk_rows=7)
    overall = linear.layer.tensor_scale[0].clone()
    master = nn.Parameter(linear.master.clone())
    adam = torch.optim.AdamW([master], lr=3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for number in range(5):
        x, wanted = batch(number)
        made = nvfp4.dequantise(nvfp4.quantise(master.detach(), scale=overall))
        through = master + (made - master).detach()  # straight-through
        F.mse_loss(F.linear(x, through, linear.layer.bias), wanted).backward()
        torch.testing.assert_close(step(linear, number, 3e-3), x.grad)
        adam.step()
        adam.zero_grad()
        torch.testing.assert_close(linear.master, master.detach(), atol=1e-6, rtol=1e-5)
    kept = nvfp4.dequantise(nvfp4.quantise(linear.master, scale=overall))
    assert torch.equal(linear._dense(), kept)


def test_weights_that_kernels_have_read_are_trained_as_before():
    one, other = layer("stochastic"), layer("stochastic")
    for number in range(2):
        one.layer.lay("words")
        torch.testing.assert_close(step(one, number, 3e-3), step(other, number, 3e-3))
    assert torch.equal(one.layer.matrix.dense(), other.layer.matrix.dense())
    one.layer.lay("file")
    assert torch.equal(one.layer.qdata, other.layer.qdata)


@pytest.mark.parametrize("states", ["float32", "int8", "int4", "none"])
def test_the_input_gets_the_gradient_of_the_weight_before_its_update(states):
    linear = layer("stochastic", states=states)
    weight = linear._dense().clone()
    x, wanted = batch(0)
    F.mse_loss(F.linear(x, weight, linear.layer.bias), wanted).backward()
    torch.testing.assert_close(step(linear, 0, 0.1), x.grad)
    assert not torch.equal(linear._dense(), weight)


def test_rows_at_a_time_change_nothing():
    made = []
    for rows in (1, 8, 64):
        linear = layer("feedback", chunk_rows=rows)
        for number in range(4):
            step(linear, number, 3e-3)
        made.append(linear._dense())
    for other in made[1:]:  # but for the order of sums
        assert (other != made[0]).float().mean() < 0.01


@pytest.mark.parametrize(
    ("arm", "moved"),
    # What feedback knows of a steady drift is (1 - β) / β of it.
    [("nearest", 0.0), ("stochastic", 1.0), ("feedback", 0.2), ("master_float32", 1.0)],
)
def test_small_steps_vanish_where_they_are_rounded_to_nearest_and_nowhere_else(arm, moved):
    """Updates of 1e-3 towards less, each far below half a code."""
    linear = layer(arm)
    before = linear._dense().clone()
    x, changed, steps, rate = torch.ones(4, K), 0, 60, 1e-3
    for _ in range(steps):
        with linear.control.update(rate):
            linear(x).sum().backward()
        changed += int(linear.control.changed)
    assert (changed > 0) == (moved > 0)
    apart = (linear._dense() - before).mean().item() / -(steps * rate)
    assert apart == pytest.approx(moved, abs=0.2)


@pytest.mark.parametrize("arm", ["stochastic", "master_float32", "nearest"])
def test_weight_decay_acts_by_itself_or_vanishes(arm):
    linear = layer(arm, weight_decay=1.0)
    before = linear._dense().abs().mean()
    x = torch.zeros(2, K)  # no gradient at all
    for _ in range(200):
        with linear.control.update(1e-3):
            linear(x).sum().backward()
    left = (linear._dense().abs().mean() / before).item()
    expected = 1.0 if arm == "nearest" else (1 - 1e-3) ** 200
    assert left == pytest.approx(expected, abs=0.04)


def test_stochastic_rounding_is_right_on_average_for_largest_values_too():
    torch.manual_seed(0)
    x = torch.randn(2, 32)
    overall = nvfp4.tensor_scale(x, 1.2)
    generator = torch.Generator().manual_seed(1)
    total, count = torch.zeros_like(x), 4000
    for _ in range(count):
        codes, scales = quantise_stochastically(x, overall, generator)
        parts = {"scales": scales, "tensor_scale": overall.reshape(1)}
        total += nvfp4.dequantise(replace(nvfp4.quantise(x), codes=codes, parts=parts))
    # Five standard errors: two codes at most a third of the largest value apart.
    assert (total / count - x).abs().max() < 5 * 0.2 * float(x.abs().max()) / count**0.5
    again = nvfp4.quantise(x, scale=overall)
    stays = nvfp4.dequantise(again)
    codes, scales = quantise_stochastically(stays, overall, generator)
    parts = {"scales": scales, "tensor_scale": overall.reshape(1)}
    # What the format can hold exactly it keeps.
    held = nvfp4.dequantise(replace(again, codes=codes, parts=parts))
    assert (held == stays).float().mean() > 0.5


def test_a_decoder_learns_in_place_and_evaluates_without_a_graph():
    decoder = wild("qwen3", hidden_size=64, intermediate_size=64, head_dim=16, scale=0.05)
    control = Control(ARMS["stochastic"], states="int8", generator=torch.Generator())
    layers = make_trainable(decoder, control)
    assert len(layers) == 3 * 7
    tokens = torch.randint(0, 61, (4, 33), generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(60):
        with control.update(4e-3):
            loss = next_token_loss(decoder, tokens)
            loss.backward()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert (
        0
        < int(control.changed)
        < control.codes
        == sum(one.layer.out_features * one.layer.in_features for one in layers)
    )
    with torch.no_grad():
        assert next_token_loss(decoder, tokens).item() < losses[0]
        assert all(one.kept is not None for one in layers)
    found = bytes_by_kind(decoder, layers)
    weights = control.codes
    assert found["packed"] == pytest.approx(weights * 4.5 / 8, rel=0.01)
    assert found["master"] == 0
    assert weights < found["states"] < 1.4 * weights


def test_only_the_last_layers_train_and_gradients_outside_an_update_change_nothing():
    decoder = wild("qwen3", hidden_size=64, intermediate_size=64, head_dim=16)
    control = Control(ARMS["stochastic"], generator=torch.Generator())
    layers = make_trainable(decoder, control, last_layers=1)
    assert len(layers) == 7
    assert not any(isinstance(m, TrainedLinear) for m in decoder.layers[:2].modules())
    before = [one.layer.qdata.clone() for one in layers]
    next_token_loss(decoder, torch.randint(0, 61, (2, 9))).backward()
    assert all(torch.equal(a, b.layer.qdata) for a, b in zip(before, layers, strict=True))


def test_what_cannot_be_trained_is_refused():
    decoder = wild("qwen3", hidden_size=64, intermediate_size=64, head_dim=16)
    with pytest.raises(BadTraining, match="4 layers of 3"):
        make_trainable(decoder, Control(ARMS["nearest"]), last_layers=4)
    with pytest.raises(BadTraining, match="needs a momentum"):
        Control(ARMS["feedback"], states="none")
    with pytest.raises(BadTraining, match="states 'int2'"):
        Control(ARMS["nearest"], states="int2")
    linear = layer("stochastic")
    with linear.control.update(1e-3), pytest.raises(Diverged, match="not finite"):
        (linear(torch.full((2, K), 1.0)) * float("inf")).sum().backward()
