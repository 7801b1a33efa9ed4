"""Adapters as data: what is refused, and what their hash depends on."""

import math

import pytest
import torch

from ember.backends.forward import Forward
from ember.lora.adapter import Adapter, BadAdapter, LowRank, check_fits, draw_adapter, linears
from ember.policies.execute import PromptKV, run_plan
from ember.policies.plan import Plan
from tests.lora.adapters import adapter_of
from tests.tiny import SIZES, wild


def test_the_hash_is_of_content_and_scale_only():
    decoder = wild()
    one, same, other = (adapter_of(decoder, seed) for seed in (1, 1, 2))
    assert one.hash == same.hash
    assert len({one.hash, other.hash, one.scaled(0.5).hash, one.only(layers=[0]).hash}) == 4
    assert Adapter(dict(one), "another name").hash == one.hash
    half = {k: LowRank(p.a.half().float(), p.b, p.scale) for k, p in one.items()}
    stored = {k: LowRank(p.a.half(), p.b, p.scale) for k, p in one.items()}
    assert Adapter(half).hash == Adapter(stored).hash, "the file's format does not matter"


def test_parts_by_layer_and_projection():
    adapter = adapter_of(wild())
    assert adapter.layers == (0, 1, 2)
    assert adapter.projections == ("q_proj", "k_proj", "v_proj", "o_proj")
    first, rest = adapter.only(layers=range(1)), adapter.only(layers=range(1, 3))
    assert {*first, *rest} == {*adapter}
    assert not {*first} & {*rest}
    assert adapter.only(projections=["k_proj"]).projections == ("k_proj",)
    assert adapter.only(layers=[7]) is None
    part = adapter[0, "q_proj"]
    assert torch.allclose(part.delta(), part.scale * part.b.double() @ part.a.double())
    assert adapter.scaled(1.0) is adapter


def test_drawn_adapters_begin_as_no_change():
    decoder = wild()
    adapter = draw_adapter(decoder, rank=4, alpha=8)
    assert all(not part.b.any() and part.a.any() for part in adapter.values())
    with pytest.raises(BadAdapter, match="query_key_value"):
        draw_adapter(decoder, rank=4, alpha=8, projections=["query_key_value"])


def test_a_policy_reads_an_adapter_as_it_is():
    decoder = wild()
    kv = PromptKV.empty(decoder, [1, 2, 3])
    run_plan(Forward(decoder), kv, Plan.full(SIZES["num_layers"]), adapter=adapter_of(decoder))
    assert kv.cache.adapted == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(4, 31)}, "changes a matrix of"),
        ({"b": torch.zeros(32, 5)}, "no common rank"),
        ({"a": torch.full((4, 32), math.nan)}, "NaN or infinity"),
        ({"scale": math.inf}, "NaN or infinity"),
        ({"a": torch.zeros(4, 32, dtype=torch.int32)}, "floating-point"),
        ({"a": torch.zeros(4)}, "shape"),
    ],
)
def test_wrong_factors_are_refused(change, message):
    decoder = wild()
    good = {"a": torch.zeros(4, 32), "b": torch.zeros(32, 4), "scale": 1.0}
    with pytest.raises(BadAdapter, match=message):
        check_fits(Adapter({(0, "q_proj"): LowRank(**good | change)}), decoder)


@pytest.mark.parametrize(
    ("key", "message"), [((3, "q_proj"), "has 3 layers"), ((0, "qkv"), "does not have")]
)
def test_another_base_model_is_refused(key, message):
    part = LowRank(torch.zeros(4, 32), torch.zeros(32, 4), 1.0)
    with pytest.raises(BadAdapter, match=message):
        check_fits(Adapter({key: part}), wild())


def test_what_float16_cannot_hold_is_refused():
    part = LowRank(torch.full((4, 32), 100.0), torch.full((32, 4), 100.0), 2.0)
    adapter = Adapter({(0, "q_proj"): part})
    check_fits(adapter, wild(dtype=torch.bfloat16))
    with pytest.raises(BadAdapter, match="cannot hold"):
        check_fits(adapter, wild(dtype=torch.float16))


def test_no_change_at_all_is_refused():
    with pytest.raises(BadAdapter, match="changes nothing"):
        Adapter({})


def test_every_matrix_of_a_layer_can_be_adapted():
    names = {name for _, name in linears(wild())}
    assert names == {*("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
