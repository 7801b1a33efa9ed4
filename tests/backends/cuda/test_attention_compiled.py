"""Attention of few rows as compiled for Hopper, which needs no device: keys and values are read in
long words, and the first of them before the queries are there."""

import re

import pytest

pytest.importorskip("triton")

from ember.backends.cuda import attention
from tests.backends.cuda.test_packed_compiled import compiled

SHAPES = {  # of a head: dimensions, those that rotate, heads, KV heads, norm
    "pythia-2.8b": (80, 20, 32, 32, False),
    "qwen3-4b": (128, 128, 32, 8, True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_keys_are_read_in_long_words_whichever_dimensions_rotate(name, tmp_path):
    dim, rotated, heads, kv_heads, norm = SHAPES[name]
    kernel = attention._attend
    types = {name: "*bf16" for name in kernel.arg_names if name.endswith("_ptr")}
    types |= dict.fromkeys(["cos_ptr", "sin_ptr", "out_ptr", "lse_ptr"], "*fp32")
    integers = ("position_ptr", "shared_ptr", "members_ptr", "starts_ptr", "lengths_ptr")
    types |= dict.fromkeys(integers, "*i32") | {"scale": "fp32", "eps": "fp32"}
    constants = {"GROUPS": 0, "HQ": heads, "HKV": kv_heads, "D": dim, "ROTATED": rotated}
    constants |= {"PAIRS": attention.head_pairs(dim), "WINDOW": 0, "R": 16, "PER": 1}
    constants |= {"BLOCK": attention.FEW_BLOCK, "SHARED_PARTS": 1, "OWN_PARTS": 7}
    constants |= {"NORM": norm, "OFFSET": False, "LATE": False, "PDL": True}
    text, usage = compiled(kernel, constants, tmp_path / "k.cubin", types, 4)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    long = 2 * attention.FEW_BLOCK * 2 * attention.head_pairs(dim) // (8 * 128)
    before, after = (
        len(re.findall(r"LDG\.E(?:\.\w+)*\.128", part)) for part in text.split("ACQBULK")
    )
    assert before == long
    assert after >= long
