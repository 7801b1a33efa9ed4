"""Versions of weights: content, and nothing else, decides."""

import pytest
import torch

from ember.lora.branch import Branches
from ember.lora.merge import KEEPS, Merger
from ember.model import version as module
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.version import changed, version, weighted_sums
from tests.lora.adapters import adapter_of
from tests.tiny import wild


def test_equal_weights_have_equal_versions_and_others_do_not(tmp_path):
    decoder, same, other = wild(), wild(), wild(seed=1)
    assert version(decoder) == version(same) != version(other)
    assert version(load_decoder(save_decoder(decoder, tmp_path / "model"))) == version(decoder)
    assert version(decoder.to(torch.bfloat16)) != version(same)


def test_equal_weights_of_another_architecture_have_another_version():
    decoder, other = wild(), wild(rope_theta=5e4)
    other.load_state_dict(decoder.state_dict())
    assert version(decoder) != version(other)


def test_it_is_found_once_for_as_long_as_nothing_changes(monkeypatch):
    decoder, calls = wild(), []
    real = module._content
    monkeypatch.setattr(module, "_content", lambda d: calls.append(1) or real(d))
    assert len({version(decoder) for _ in range(3)}) == 1
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w[0, 0].add_(1e-3),
        lambda w: w.copy_(w.flip(0)),
        lambda w: torch.optim.SGD([_with_gradient(w)], 0.1).step(),
    ],
    ids=["scaled", "one number", "rows swapped", "trained"],
)
def test_changes_that_torch_counts_are_seen(change):
    decoder = wild()
    before = version(decoder)
    with torch.no_grad():
        change(decoder.layers[1].mlp.up_proj.weight)
    assert version(decoder) != before


def _with_gradient(weight):
    weight.grad = torch.ones_like(weight)
    return weight


def test_replaced_weights_are_seen_and_moved_ones_have_the_same_version():
    decoder = wild()
    before = version(decoder)
    weight = decoder.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.clone()
    assert version(decoder) == before
    decoder.load_state_dict(wild(seed=1).state_dict(), assign=True)
    assert version(decoder) == version(wild(seed=1)) != before


def test_changes_past_torch_must_be_told():
    decoder = wild()
    before = version(decoder)
    decoder.norm.weight.data.mul_(2)
    changed(decoder)
    assert version(decoder) != before


@pytest.mark.parametrize("keep", KEEPS)
def test_merged_adapters_give_the_version_of_what_the_weights_then_are(keep):
    decoder, base = wild(), version(wild())
    merger = Merger(decoder, keep=keep)
    seen = []
    for seed in (1, 2, 1, None, 2):
        merger.swap(None if seed is None else adapter_of(decoder, seed))
        seen.append(version(decoder))
        fresh = wild()
        fresh.load_state_dict(decoder.state_dict())
        assert seen[-1] == version(fresh), "as if it were made of these weights"
    if keep != "none":
        assert seen[3] == base
    assert len({*seen[:2], base}) == 3


def test_going_back_to_a_merged_adapter_costs_no_pass(monkeypatch):
    decoder = wild()
    merger = Merger(decoder)
    adapters = [merger.prepare(adapter_of(decoder, seed)) for seed in (1, 2)]
    for prepared in (*adapters, None):
        merger.swap(prepared)
        version(decoder)
    monkeypatch.setattr(module, "_content", lambda _: pytest.fail("hashed again"))
    for prepared in (*adapters, None):
        merger.swap(prepared)
        version(decoder)


def test_branches_count_when_they_are_active():
    decoder = wild()
    base, branches = version(decoder), Branches(decoder)
    branches.attach("a", adapter_of(decoder, 1), trainable=True)
    assert version(decoder) == base
    branches.activate("a")
    first = version(decoder)
    assert first != base
    with torch.no_grad():
        branches.parameters("a")[0].add_(1)
    assert version(decoder) not in (first, base)
    branches.activate(None)
    assert version(decoder) == base
    branches.detach("a")
    assert version(decoder) == base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_on_a_device_tell_apart_what_differs_in_a_bit_or_in_order(dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)
    tensor = torch.randn(37, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = weighted_sums(tensor)
    assert sums.shape == (37,)
    assert torch.equal(sums, weighted_sums(tensor.clone()))
    for row, column in ((0, 0), (36, 23), (5, 7)):
        other = tensor.clone()
        other[row, column] = -other[row, column]
        assert (weighted_sums(other) != sums).nonzero().flatten().tolist() == [row]
    assert not torch.equal(weighted_sums(tensor.flip(1)), sums)
    assert weighted_sums(torch.ones(8)).shape == (1,)
    assert not torch.equal(weighted_sums(torch.ones(8)), weighted_sums(2 * torch.ones(8)))
