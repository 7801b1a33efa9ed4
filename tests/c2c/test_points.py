"""Points of the channel from a configuration."""

import sys

import pytest

from ember.c2c import points
from ember.c2c.select import SELECTORS
from ember.config.c2c import RunMode, TopMode
from ember.config.load import load
from ember.operations.settings import CHECKS
from tests.config.scales import changed, merged

QUANT = {
    "scheme": ["int8", "fp16"],
    "axis": ["token", "head"],
    "symmetric": [True],
    "group": 8,
    "eps": 0.0,
    "quantize_target": ["source"],
}


def test_every_combination_once_and_fp16_first():
    found = points.ptq({"grids": [QUANT, QUANT | {"axis": ["head"]}]})
    assert [one["point"] for one in found] == ["fp16", "int8-token", "int8-head"]


def test_all_tokens_are_one_point_whatever_chooses():
    quant, transfer = (
        QUANT | {"scheme": ["int8"], "axis": ["token"]},
        {
            "token_select_mode": ["front", "vnorm_topk"],
            "token_select_proportion": [1.0, 0.5],
            "token_select_scope": "prompt",
            "token_select_min_tokens": 0,
            "token_select_seed": 0,
            "sparse_fuse": True,
            "scatter_fill": "receiver_only",
            "index_dtype_bytes": 2,
            "include_scale_overhead": True,
        },
    )
    grids = [{"kv_quant_config": quant, "kv_transfer_config": transfer}]
    assert [one["point"] for one in points.selection({"grids": grids})] == [
        *("fp16", "int8-token", "int8-token-front-0.5", "int8-token-vnorm_topk-0.5"),
        "int8-token-back-0.5",  # the baseline stands beside every selection
    ]
    assert points.ptq({"grids": [quant]})[1] in points.selection({"grids": grids})


def test_what_is_not_usual_stands_in_the_id():
    one = points.point(scheme="int4", mode="back", proportion=0.25, min_tokens=3, seed=2)
    assert one["point"] == "int4-token-back-0.25-min_tokens=3-seed=2"
    assert points.point(scheme="fp16", axis="head")["point"] == "fp16"


def test_configured_modes_are_the_selectors():
    assert {*RunMode.__args__, *TopMode.__args__} == {*SELECTORS}
    assert {name for name, one in SELECTORS.items() if one.oracle} == {*points.ORACLES}


@pytest.mark.parametrize("scale", ["smoke", "tiny", "gpu", "paper"])
def test_points_of_every_scale_have_names_of_their_own(scale):
    settings = load(merged(scale), (), CHECKS).model_dump()["c2c"]
    for family in ("ptq", "length", "selection"):
        found = getattr(points, family)(settings[family])
        assert len({one["point"] for one in found}) == len(found) > 10
        assert found[0]["point"] == "fp16"
    backs = {(one["scheme"], one["proportion"]) for one in found if one["mode"] == "back"}
    assert {(one["scheme"], one["proportion"]) for one in found if one["mode"] != "all"} == backs


def test_planning_needs_no_torch():
    import subprocess

    code = (
        "import sys, ember.c2c.points, ember.operations.settings; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("ptq", "grids"), [{"scheme": ["nf4"], "axis": ["head"]}], "ptq.grids.0.*Set axis to tok"),
        (
            ("length", "kv_quant_config"),
            {"scheme": ["fp8"], "symmetric": [False]},
            "symmetric only",
        ),
        (("layers", "axis"), "layer", None),
        (("layers", "schemes"), ["nf4", "fp16"], None),
        (("layers", "last"), [9], "layers.last.0.*more than the receiver's 4"),
        (
            ("layers", "schedules"),
            {"mine": {"default": "int8", "overrides": [{"layers": [7], "scheme": "fp16"}]}},
            "schedules.mine.*none of 0 to 3",
        ),
        (("ptq", "grids"), [{"scheme": ["int3"]}], "ptq.grids.0.scheme"),
    ],
)
def test_what_the_table_does_not_have_is_refused_while_planning(path, value, said):
    config = changed(merged("tiny"), ("c2c", *path), value)
    if said is None:
        load(config, (), CHECKS)
        return
    from ember.config.load import ConfigError

    with pytest.raises(ConfigError, match=said):
        load(config, (), CHECKS)
