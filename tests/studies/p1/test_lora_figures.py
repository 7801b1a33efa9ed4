"""Figures of the adapters: what captions say is what the tables hold."""

import pandas as pd

from ember.studies.p1.lora_alignment.figure import draw_blocks, draw_layers
from ember.studies.p1.lora_alignment.tables import BLOCKS
from ember.studies.p1.lora_latency import figure as p1_lora_latency

ABOUT = {
    "model": "policy",
    "weights": "trained",
    "device": "cpu",
    "evidence": "measured",
    "num_layers": 4,
}


def differences(value: float) -> dict:
    return {
        "base_max_abs_diff": value / 2,
        "lora_max_abs_diff": value,
        "delta_max_abs_diff": value,
        "effect_max_abs": 0.5,
    }


def layers_table() -> pd.DataFrame:
    return pd.DataFrame(
        ABOUT | {"adapter": "trained", "dtype": dtype, "layer": i} | differences(size * i)
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
    assert "- trained, float32: effect differs by 3e-07" in caption
    assert "crosses 0.1 never." in caption
    assert "- trained, bfloat16: effect differs by 0.15 after the last layer" in caption
    assert "crosses 0.1 at layer 3." in caption
    assert "first 2 of 4 layers left without the adapter, their outputs move by 0" in caption
    assert "float32, bfloat16 on cpu" in caption


def test_blocks_share_their_scale_and_leave_zeros_out():
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
    upper = figure.axes[:2]
    assert upper[0].get_ylim() == upper[1].get_ylim()
    drawn = upper[0].lines[0].get_ydata()
    assert pd.isna(drawn[0]), "the first layer's difference is exactly zero"
    assert all(drawn[1:] > 0)


def test_latency_names_the_limit_and_what_drifts():
    shared = ABOUT | {"dtype": "float32", "matrices": 16, "rank": 8, "bytes": 4_000_000}
    shared |= {"copy_gb_s": 5.0, "limit_ms": 0.8, "status": "ok", "n": 5, "ms_cv": 0.1}
    rows = [
        shared
        | {"implementation": who, "keep": keep, "operation": operation, "phase": phase}
        | {"ms_median": ms, "ms_min": ms, "ms_max": ms, "ratio_to_limit": ms / 0.8}
        | {"speedup_over_peft": 8.0 / ms}
        for who, keep, ms in (("ember", "device", 1.0), ("peft", "none", 8.0))
        for operation in ("apply", "replace", "rollback", "reload")
        for phase in ("cold", "steady")
    ]
    exact = pd.DataFrame(
        {"implementation": who, "keep": keep, "swaps": 100, "exact": bits}
        | {"max_abs_diff": 0.0 if bits else 2e-6, "kept_bytes": 2_000_000 if bits else 0}
        for who, keep, bits in (("ember", "device", True), ("peft", "none", False))
    )
    _, caption = p1_lora_latency.draw(pd.DataFrame(rows), exact, "tiny")
    assert (
        "- replace (base kept: device): 1 ms, 1.25 × the limit, 8.0× faster than PEFT." in caption
    )
    assert "Ember, device bit-equal, keeping 2 MB; PEFT off by up to 2e-06" in caption
