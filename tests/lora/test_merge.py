"""Merging: right sums, one pass, exact unloading, and failures that change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.lora import merge
from ember.lora.adapter import Adapter, BadAdapter, LowRank
from ember.lora.merge import KEEPS, LostWeights, Merger
from ember.measure.memory import NotEnoughMemory
from tests.lora.adapters import adapter_of, bits, equal_bits, logits, merged_by_hand
from tests.tiny import wild

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def rounding(dtype: torch.dtype) -> float:
    """Half a unit in the last place of numbers below 4."""
    return 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_weights_are_the_sum_rounded_once(dtype, keep):
    decoder = wild(dtype=dtype)
    adapter = adapter_of(decoder)
    expected = merged_by_hand(decoder, adapter)
    before = bits(decoder)
    Merger(decoder, keep=keep).swap(adapter)
    for (name, weight), wanted in zip(
        decoder.named_parameters(), expected.parameters(), strict=True
    ):
        if "self_attn" in name and name.endswith("proj.weight"):
            assert not torch.equal(weight, before[name])
            # Rounded to nearest, but where the float32 sum lies on the other side of a tie.
            error = (weight.double() - wanted).abs()
            assert error.max() <= rounding(dtype), name
            assert ((wanted.to(dtype) == weight).float().mean() > 0.99) or dtype.itemsize > 2
        else:
            assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("keep", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hundred_swaps_and_an_unload_leave_the_base_bit_for_bit(dtype, keep):
    decoder = wild(dtype=dtype)
    before, merger = bits(decoder), Merger(decoder, keep=keep)
    adapters = [
        adapter_of(decoder, 1),
        adapter_of(decoder, 2, rank=3, projections=("q_proj", "up_proj")),
        adapter_of(decoder, 3, rank=7).only(layers=[1]),
    ]
    for number in range(100):
        merger.swap(adapters[number % 3])
    assert not equal_bits(decoder, before)
    merger.swap(None)
    assert equal_bits(decoder, before)
    assert merger.active is None
    # All q, k, v, o, up of all layers were adapted.
    size = dtype.itemsize * 3 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 48 * 32)
    assert merger.base_bytes == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_base_kept_on_the_device_nothing_depends_on_what_was_merged_before(dtype):
    decoder, fresh = (wild(dtype=dtype) for _ in range(2))
    merger = Merger(decoder)
    for seed in range(5):
        merger.swap(adapter_of(decoder, seed))
    merger.swap(adapter_of(decoder, 9, projections=("v_proj",)))
    Merger(fresh).swap(adapter_of(fresh, 9, projections=("v_proj",)))
    assert equal_bits(decoder, bits(fresh))


def test_without_a_copy_weights_drift_and_memory_is_free():
    decoder = wild(dtype=torch.bfloat16)
    before, merger = bits(decoder), Merger(decoder, keep="none")
    for number in range(20):
        merger.swap(adapter_of(decoder, number % 2))
    merger.swap(None)
    assert merger.base_bytes == 0
    assert not equal_bits(decoder, before)
    drift = max((p - before[n]).abs().max().item() for n, p in decoder.named_parameters())
    assert 0 < drift < 0.1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.sampled_from(["device", "host"]))
def test_any_order_of_swaps_ends_where_its_last_adapter_says(order, keep):
    decoder = wild()
    adapters = [
        None,
        adapter_of(decoder, 1),
        adapter_of(decoder, 2, rank=2).only(layers=[0, 2]),
        adapter_of(decoder, 3, projections=("down_proj", "k_proj")),
        adapter_of(decoder, 1).scaled(-0.5),
    ]
    before, merger = bits(decoder), Merger(decoder, keep=keep)
    prepared = [a if a is None else merger.prepare(a) for a in adapters]
    for number in order:
        merger.swap(prepared[number])
    last = adapters[order[-1]]
    if last is None:
        assert equal_bits(decoder, before)
        return
    expected = merged_by_hand(wild(), last)
    for weight, wanted in zip(decoder.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(weight.double(), wanted, atol=3e-6)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("failing", [0, 5, 11])
def test_a_swap_that_fails_half_way_is_undone(failing, dtype, keep, monkeypatch):
    decoder = wild(dtype=dtype)
    merger = Merger(decoder, keep=keep)
    first, second = adapter_of(decoder, 1), adapter_of(decoder, 2)
    merger.swap(first)
    before, answer, calls = bits(decoder), logits(decoder), []
    real = merge._add

    def failing_add(*arguments):
        calls.append(1)
        if len(calls) == failing + 1:
            raise RuntimeError("the device fell off")
        real(*arguments)

    monkeypatch.setattr(merge, "_add", failing_add)
    with pytest.raises(RuntimeError, match="fell off"):
        merger.swap(second)
    assert merger.active is first
    if keep == "device":
        assert equal_bits(decoder, before)
        assert torch.equal(logits(decoder), answer)
    else:
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        for name, weight in decoder.named_parameters():
            assert torch.allclose(weight, before[name], atol=tolerance), name
    merger.swap(second)
    assert merger.active is second


def test_a_swap_that_cannot_be_undone_says_so(monkeypatch):
    decoder = wild()
    merger = Merger(decoder)
    merger.swap(adapter_of(decoder, 1))

    def broken(*arguments):
        raise RuntimeError("no device any more")

    monkeypatch.setattr(merge, "_add", broken)
    with pytest.raises(RuntimeError, match="no device"):
        merger.swap(adapter_of(decoder, 2))
    monkeypatch.undo()
    with pytest.raises(LostWeights, match="Load the model again"):
        merger.swap(None)


def test_an_adapter_that_does_not_fit_changes_nothing():
    decoder = wild()
    merger = Merger(decoder)
    merger.swap(adapter_of(decoder))
    before = bits(decoder)
    bad = Adapter({**adapter_of(decoder, 2), (9, "q_proj"): adapter_of(decoder)[0, "q_proj"]})
    with pytest.raises(BadAdapter, match="3 layers"):
        merger.swap(bad)
    assert equal_bits(decoder, before)


def test_too_little_memory_for_the_copy_changes_nothing(monkeypatch):
    decoder = wild()
    before = bits(decoder)

    def none_left(needed, device, what):
        if "copy" in what:
            raise NotEnoughMemory(f"{what} does not fit\nbuy more")

    monkeypatch.setattr(merge, "require", none_left)
    with pytest.raises(NotEnoughMemory, match="copy of the adapted matrices"):
        Merger(decoder).swap(adapter_of(decoder))
    assert equal_bits(decoder, before)


def test_the_base_can_be_forgotten_and_changed():
    decoder = wild()
    merger = Merger(decoder)
    merger.swap(adapter_of(decoder))
    merger.forget_base()
    assert merger.base_bytes == 0
    with torch.no_grad():
        decoder.layers[0].self_attn.q_proj.weight.mul_(2)
    before = bits(decoder)
    merger.swap(adapter_of(decoder))
    merger.swap(None)
    assert equal_bits(decoder, before)


def test_parameters_that_move_are_found_again():
    decoder = wild()
    merger = Merger(decoder)
    merger.swap(adapter_of(decoder, 1))
    for parameter in decoder.parameters():
        parameter.data = parameter.data.clone()
    merger.swap(adapter_of(decoder, 2))
    expected = wild()
    Merger(expected).swap(adapter_of(expected, 2))
    assert equal_bits(decoder, bits(expected))


def test_how_much_is_kept_must_be_known():
    with pytest.raises(BadAdapter, match="keep is 'gpu'"):
        Merger(wild(), keep="gpu")


def test_large_matrices_are_summed_in_stretches(monkeypatch):
    monkeypatch.setattr(merge, "CHUNK", 100)  # three rows of 32 at a time
    decoder = wild(dtype=torch.bfloat16)
    adapter = adapter_of(decoder)
    expected = merged_by_hand(decoder, adapter)
    Merger(decoder).swap(adapter)
    found = decoder.layers[0].self_attn.q_proj.weight
    wanted = expected.layers[0].self_attn.q_proj.weight
    assert (found == wanted.to(torch.bfloat16)).float().mean() > 0.99


def test_a_scale_of_zero_is_the_base():
    decoder = wild()
    before = bits(decoder)
    parts = {k: LowRank(p.a, p.b, 0.0) for k, p in adapter_of(decoder).items()}
    Merger(decoder).swap(Adapter(parts))
    assert equal_bits(decoder, before)


def double(weight) -> None:
    with torch.no_grad():
        weight.mul_(2)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_base_that_others_change_while_nothing_is_merged_stays_changed(keep):
    decoder = wild()
    merger = Merger(decoder, keep=keep)
    merger.swap(adapter_of(decoder))
    merger.swap(None)
    double(decoder.layers[0].self_attn.q_proj.weight)  # counted by torch
    moved = decoder.layers[1].self_attn.q_proj.weight
    moved.data = moved.data * 3  # put elsewhere
    before = bits(decoder)
    merger.swap(adapter_of(decoder, 2))
    merger.swap(None)
    if keep == "none":
        assert torch.allclose(moved, before["layers.1.self_attn.q_proj.weight"], atol=1e-5)
    else:
        assert equal_bits(decoder, before)


@pytest.mark.parametrize("keep", ["device", "host"])
def test_a_base_that_others_change_under_an_adapter_is_refused(keep):
    decoder = wild()
    merger = Merger(decoder, keep=keep)
    merger.swap(adapter_of(decoder))
    double(decoder.layers[0].self_attn.q_proj.weight)
    for adapter in (None, adapter_of(decoder, 2)):
        with pytest.raises(LostWeights, match=r"layer 0 q_proj were changed(.|\n)*Load the model"):
            merger.swap(adapter)


def test_weights_that_no_adapter_changes_may_change_at_any_time():
    decoder = wild()
    merger = Merger(decoder)
    merger.swap(adapter_of(decoder))
    double(decoder.layers[0].mlp.up_proj.weight)
    double(decoder.norm.weight)
    before = bits(decoder)
    merger.swap(None)
    assert torch.equal(decoder.norm.weight, before["norm.weight"])
    merger.swap(adapter_of(decoder, 2, projections=("up_proj",)))
    merger.swap(None)
    assert torch.equal(decoder.layers[0].mlp.up_proj.weight, before["layers.0.mlp.up_proj.weight"])
