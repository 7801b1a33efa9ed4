"""Every tool finds a planted fault and names it (L-4)."""

import math
import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ember.lowbit.debug import (
    as_integers,
    check_scales,
    compare_layers,
    first_exploding,
    first_tokens,
)
from ember.model.packed import PACKED, densify, quantise_decoder
from tests.tiny import wild

BLOCK, TENSOR = 16, 0.25
SIZE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}


class Blocks(nn.Module):
    """A layer whose weights are its blocks' scales, read in a right or a wrong way."""

    def __init__(self, scales: torch.Tensor, fault: str = ""):
        super().__init__()
        self.scales, self.fault = scales, fault
        self.in_features = scales.shape[1] * BLOCK

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.scales.float()
        if self.fault == "integers":
            read = self.scales.view(torch.uint8).float()
        elif self.fault == "exponent":
            read = read * 2.0**-112
        elif self.fault == "tensor":
            read = read * TENSOR
        elif self.fault == "layout":
            read = read.flip(1)
        elif self.fault == "overflow":
            read = read * math.inf
        return x @ read.repeat_interleave(BLOCK, 1).T


SCALES = torch.linspace(0.02, 440, 8 * 4).view(8, 4).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("integers", "as integers"),
        ("exponent", r"2\^-112"),
        ("tensor", "all scales are 0.25 of theirs"),
        ("layout", "layout"),
        ("overflow", "non-finite"),
    ],
)
def test_scales_that_are_misread_are_told_by_how(fault, said):
    good = check_scales(Blocks(SCALES), SCALES)
    assert good.right
    assert good.worst < 1e-6
    bad = check_scales(Blocks(SCALES, fault), SCALES)
    assert not bad.right
    assert bad.worst > 0.1
    assert re.search(said, bad.diagnosis)


def test_scales_survive_half_precision_outputs():
    rounded = check_scales(Blocks(SCALES), SCALES, lambda layer, x: layer(x).bfloat16())
    assert rounded.right


def test_the_layer_that_explodes_is_named_and_those_after_it_are_not_blamed():
    reference, got = wild("qwen3", seed=1), wild("qwen3", seed=1)
    with torch.no_grad():
        got.layers[1].mlp.down_proj.weight.mul_(3.0)
    found = compare_layers(got, reference, torch.tensor([[1, 2, 3, 4]]))
    assert len(found) == 3 * 8 + 1  # seven projections and the attention, and the head
    assert [one.call for one in found] == [*range(25)]
    worst = first_exploding(found, 0.5)
    assert worst.layer == "layers.1.mlp.down_proj"
    assert worst.rel == pytest.approx(2.0, rel=1e-4)
    assert worst.got_max == pytest.approx(3 * worst.ref_max, rel=1e-4)
    # Every layer gets the reference's input: only the faulty one differs.
    assert [one.layer for one in found if one.rel > 1e-6] == ["layers.1.mlp.down_proj"]
    same = compare_layers(wild("qwen3", seed=1), reference, torch.tensor([[1]]))
    assert first_exploding(same, 1e-6) is None
    assert len(compare_layers(got, reference, torch.tensor([[1, 2]]), max_calls=5)) == 5


def test_non_finite_outputs_are_found_whatever_the_threshold():
    reference, got = wild("qwen3", seed=1), wild("qwen3", seed=1)
    with torch.no_grad():
        got.layers[0].self_attn.q_proj.weight[0, 0] = math.nan
    found = first_exploding(compare_layers(got, reference, torch.tensor([[1, 2]])), 1e9)
    assert found.layer == "layers.0.self_attn.q_proj"
    assert math.isinf(found.rel)


def test_first_tokens_tell_paths_apart():
    torch.manual_seed(0)
    logits = torch.randn(200)
    broken = logits.clone()
    broken[3] = math.nan
    broken[5] = math.inf
    paths = {
        "dense": lambda tokens: logits[None],
        "rounded": lambda tokens: logits.bfloat16(),
        "other": lambda tokens: -logits,
        "broken": lambda tokens: broken,
    }
    dense, rounded, other, nan = first_tokens(paths, torch.tensor([[1]]))
    assert (dense.overlap, dense.kl) == (10, 0.0)
    assert rounded.overlap >= 9
    assert 0 <= rounded.kl < 1e-3
    assert other.overlap == 0
    assert other.kl > 0.5
    assert (nan.nan, nan.infinite) == (1, 1)
    assert math.isinf(nan.kl)
    assert 3 not in nan.top


def test_a_softmax_scale_passed_for_the_dropout_is_found_in_its_attention():
    """The earlier system's bug: the scale went to the argument before its own."""
    reference, got = wild("qwen3", seed=1), wild("qwen3", seed=1)
    faulty = got.layers[1].self_attn

    def attend(q, k, v):
        torch.manual_seed(0)
        scale = q.shape[-1] ** -0.5
        return F.scaled_dot_product_attention(q, k, v, None, scale, True, enable_gqa=True)

    faulty.attend = attend
    found = compare_layers(got, reference, torch.tensor([[1, 2, 3, 4, 5]]))
    assert first_exploding(found, 1e-3).layer == "layers.1.self_attn"
    assert [one.layer for one in found if one.rel > 1e-3] == ["layers.1.self_attn"]


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_packed_layers_are_right_and_scales_read_as_integers_are_found(kind):
    got = wild("qwen3", seed=1, **SIZE)
    quantise_decoder(got, kind, skip=("lm_head",))
    reference = deepcopy(got)
    densify(reference)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    assert first_exploding(compare_layers(got, reference, tokens), 1e-5) is None
    if kind != "nvfp4":
        return
    layer = got.layers[2].mlp.up_proj
    layer.forward = lambda x: F.linear(x, as_integers(layer).dense(x.dtype))
    worst = first_exploding(compare_layers(got, reference, tokens), 0.05)
    assert worst.layer == "layers.2.mlp.up_proj"
