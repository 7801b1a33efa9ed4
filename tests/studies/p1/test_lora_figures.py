"""Figures of the adapters: what captions say is what the tables hold."""

import pandas as pd

from ember.studies.p1.lora_alignment.figure import draw_blocks, draw_layers
from ember.studies.p1.lora_alignment.tables import BLOCKS
from ember.studies.p1.lora_latency import figure as p1_lora_latency
from ember.studies.p1.lora_latency.tables import SWITCHES
from tests.drawn import covered

ABOUT = {
    "model": "policy",
    "weights": "trained",
    "device": "cpu",
    "evidence": "measured",
    "num_layers": 4,
}


def differences(value: float, dtype: str = "float32") -> dict:
    half = {"errors": [2.0, 3.0], "base_errors": [1.0, 1.0]}
    half |= {"reference_errors": [1.0, 2.0], "base_reference_errors": [1.0, 2.0]}
    return (half if dtype == "bfloat16" else {key: [] for key in half}) | {
        "base_max_abs_diff": value / 2,
        "lora_max_abs_diff": value,
        "delta_max_abs_diff": value,
        "effect_max_abs": 0.5,
    }


def layers_table() -> pd.DataFrame:
    return pd.DataFrame(
        ABOUT | {"adapter": "trained", "dtype": dtype, "layer": i} | differences(size * i, dtype)
        for dtype, size in (("float32", 1e-7), ("bfloat16", 0.05))
        for i in range(4)
    )


def freeze_table() -> pd.DataFrame:
    return pd.DataFrame(
        ABOUT
        | {"adapter": "trained", "dtype": dtype, "freeze": freeze, "threshold": 0.1}
        | {"first_layer": 3 if dtype == "bfloat16" else None, "prefix_effect_max": 0.0}
        for dtype in ("float32", "bfloat16")
        for freeze in (0, 2)
    )


def test_layers_say_where_thresholds_are_crossed():
    figure, caption = draw_layers(layers_table(), freeze_table(), "tiny")
    assert len(figure.axes) == 2
    assert not any(axes.get_legend() for axes in figure.axes), "bands fill the panels"
    assert "- trained, float32: effect differs by 3e-07" in caption
    assert "crosses 0.1 never." in caption
    assert "- trained, bfloat16: error 1.7500 × PEFT's own (median over prompts), effect" in caption
    assert "crosses 0.1 at layer 3." in caption
    assert "first 2 of 4 layers left without the adapter, their outputs move by 0" in caption
    assert "float32, bfloat16 on cpu" in caption


def test_blocks_show_errors_over_pefts_own():
    rows = []
    for layer in layers_table().to_dict("records"):
        for block in BLOCKS:
            parts = dict.fromkeys(
                ("delta_input_max", "delta_attn_max", "delta_residual_max", "delta_gap"),
                layer["delta_max_abs_diff"] if block == "attn_residual" else None,
            )
            rows.append(layer | {"block": block} | parts)
    spot = pd.DataFrame(
        {"adapter": "trained", "dtype": "float32", "operator": operator, "enters": "input"}
        | {"own_max_abs_diff": 2e-7, "same_max_abs_diff": 0.0}
        for operator in ("norm", "gate", "up")
    )
    figure, caption = draw_blocks(pd.DataFrame(rows), spot, "tiny")
    assert "norm own input 2e-07, same input 0 (enters at: input)" in caption
    single, half = figure.axes[:2]
    [image] = half.images
    assert (image.get_array() == 1.75).all(), "the median of 2 / 1 and 3 / 2"
    assert image.get_clim() == (0.25, 1.75), "1, as exact as PEFT, is in the middle"
    assert "bfloat16 1.750 to 1.750" in caption
    assert not single.images
    assert not covered(single)
    drawn = figure.axes[2].lines[0].get_ydata()
    assert pd.isna(drawn[0]), "the first layer has no difference to have parts"
    assert all(drawn[1:] == 1.0)


def test_blocks_of_float32_alone_are_drawn():
    layer = layers_table().to_dict("records")[1]
    parts = ("delta_input_max", "delta_attn_max", "delta_residual_max", "delta_gap")
    blocks = pd.DataFrame(layer | {"block": block} | dict.fromkeys(parts, 1.0) for block in BLOCKS)
    spot = pd.DataFrame(columns=["adapter", "dtype", "operator", "enters"])
    figure, caption = draw_blocks(blocks, spot, "tiny")
    assert len(figure.axes) == 2
    assert "not measured" in caption


def test_latency_names_the_limit_and_what_drifts():
    shared = ABOUT | {"dtype": "float32", "matrices": 16, "rank": 8, "bytes": 4_000_000}
    shared |= {"copy_gb_s": 5.0, "limit_ms": 0.8, "status": "ok", "n": 5, "ms_cv": 0.1}
    shared |= {"ms_p10": None, "ms_p90": None, "speedup_over_peft": None}
    rows = [
        shared
        | {"implementation": who, "keep": keep, "operation": operation, "phase": "steady"}
        | {"ms_median": ms, "ms_min": ms, "ms_max": ms, "ratio_to_limit": ms / 0.8}
        | {"speedup_over_peft": 8.0 / ms, "disk_cache": "none"}
        for who, keep, ms in (("ember", "device", 1.0), ("peft", "none", 8.0))
        for operation in SWITCHES
    ]
    parts = {"import": 5.0, "make": 1.0, "prepare": 2.0, "apply": 7.0, "first": 10.0}
    kinds = (("ember", "device", "cold"), ("ember", "device", "warm"), ("peft", "none", "none"))
    runs = [
        ABOUT
        | {"implementation": who, "keep": keep, "disk_cache": cache, "process": process}
        | {"operation": part, "ms": ms + process, "status": "ok"}
        for who, keep, cache in kinds
        for process in range(3)
        for part, ms in (parts | ({"compile": 4.0} if who == "ember" else {})).items()
    ]
    rows += [
        shared
        | {name: run[name] for name in ("implementation", "keep", "operation", "disk_cache")}
        | {"phase": "first", "n": 3, "ms_median": run["ms"]}
        | {"ms_min": run["ms"] - 1, "ms_max": run["ms"] + 1}
        for run in runs
        if run["process"] == 1
    ]
    exact = pd.DataFrame(
        {"implementation": who, "keep": keep, "swaps": 100, "exact": bits}
        | {"max_abs_diff": 0.0 if bits else 2e-6, "kept_bytes": 2_000_000 if bits else 0}
        for who, keep, bits in (("ember", "device", True), ("peft", "none", False))
    )
    figure, caption = p1_lora_latency.draw(pd.DataFrame(rows), pd.DataFrame(runs), exact, "tiny")
    assert (
        "- replace (base kept: device): 1 ms, 1.25 × the limit, 8.0× faster than PEFT." in caption
    )
    assert "Ember, device bit-equal, keeping 2 MB; PEFT off by up to 2e-06" in caption
    assert (
        "- first adapter, n = 3 processes, Ember, Triton's disk cache cold: 11 ms (10 to 12): make "
        "2, prepare 3, apply 8 ms; Triton compiled for 5 ms meanwhile; imports before it 6 ms."
    ) in caption
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[4:] == [
        "first of a process,\ndisk cache warm",
        "first of a process,\ndisk cache cold",
    ]
    assert not axes.patches, "points on a logarithmic axis, no bars"
