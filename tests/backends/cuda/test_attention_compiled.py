"""Attention of few rows as compiled for Hopper, which needs no device: keys and values are read in
long words, and the first of them before the queries are there."""

import re

import pytest

pytest.importorskip("triton")

from ember.backends.cuda import attention, single_attention
from tests.backends.cuda.test_packed_compiled import compiled, loop

SHAPES = {  # of a head: dimensions, those that rotate, heads, KV heads, norm
    "pythia-2.8b": (80, 20, 32, 32, False),
    "qwen3-4b": (128, 128, 32, 8, True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_keys_are_read_in_long_words_whichever_dimensions_rotate(name, tmp_path):
    constants = {"GROUPS": 0, "HQ": SHAPES[name][2], "HKV": SHAPES[name][3], "R": 16, "PER": 1}
    constants |= {"BLOCK": attention.FEW_BLOCK, "SHARED_PARTS": 1, "OWN_PARTS": 7}
    before, after, _ = long_words(attention._attend, name, constants, 4, tmp_path)
    expected = 2 * attention.FEW_BLOCK * 2 * attention.head_pairs(SHAPES[name][0]) // (8 * 128)
    assert before == expected
    assert after >= expected


def test_keys_of_single_queries_stay_in_the_lanes_that_read_them(tmp_path):
    constants = {"H": 32, "BLOCK": single_attention.SINGLE_BLOCK, "GROUPS": 1}
    constants |= {"SHARED_PARTS": 47, "OWN_PARTS": 1}
    kernel = single_attention.attend_single
    before, after, text = long_words(kernel, "pythia-2.8b", constants, 1, tmp_path)
    expected = 2 * single_attention.SINGLE_BLOCK * 2 * attention.head_pairs(80) // (8 * 32)
    assert before == expected
    assert after >= expected
    assert not re.search(r"\b(STS|LDS|BAR)\b", loop(text))


def long_words(kernel, name: str, constants: dict, warps: int, folder) -> tuple[int, int, str]:
    """Loads of 16 bytes a lane before the wait for the queries and after it, and the assembly."""
    dim, rotated, _, _, norm = SHAPES[name]
    types = {name: "*bf16" for name in kernel.arg_names if name.endswith("_ptr")}
    types |= dict.fromkeys(["cos_ptr", "sin_ptr", "out_ptr", "lse_ptr"], "*fp32")
    integers = ("position_ptr", "shared_ptr", "members_ptr", "starts_ptr", "lengths_ptr")
    types |= dict.fromkeys(integers, "*i32") | {"scale": "fp32", "eps": "fp32"}
    constants |= {"D": dim, "ROTATED": rotated, "PAIRS": attention.head_pairs(dim), "WINDOW": 0}
    constants |= {"NORM": norm, "OFFSET": False, "LATE": False, "PDL": True}
    text, usage = compiled(kernel, constants, folder / "k.cubin", types, warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    before, after = (
        len(re.findall(r"LDG\.E(?:\.\w+)*\.128", part)) for part in text.split("ACQBULK")
    )
    return before, after, text
