"""Attention of few rows as compiled for Hopper, which needs no device: keys and values are copied
16 bytes at a time and asked for before the queries are there, nothing is spilled to memory, and a
key costs few instructions."""

import re

import pytest

pytest.importorskip("triton")

from ember.backends.cuda import attention
from ember.backends.cuda.heads import head_tiles
from tests.backends.cuda.test_packed_compiled import compiled, loop

NEOX = {"HQ": 32, "HKV": 32, "NORM": False}
CASES = {  # sizes, and the most instructions of a thread in the loop over 64 keys
    "Pythia-2.8B": (NEOX | {"D": 80, "ROTATED": 20}, 320),
    "of 96": (NEOX | {"D": 96, "ROTATED": 24}, 320),
    "Qwen3-4B": ({"HQ": 32, "HKV": 8, "D": 128, "ROTATED": 128}, 360),
    "of 64": ({"HQ": 32, "HKV": 8, "D": 64, "ROTATED": 64}, 280),
    "Gemma": ({"HQ": 8, "HKV": 4, "D": 256, "ROTATED": 256, "WINDOW": 1024, "OFFSET": True}, 550),
}


@pytest.mark.parametrize("case", CASES)
def test_keys_are_read_in_wide_copies(case, tmp_path):
    given, most = CASES[case]
    sizes = {"GROUPS": 1, "PER": 1, "WINDOW": 0, "NORM": True, "OFFSET": False, "PDL": True} | given
    sizes |= {"R": 16, "FEW": sizes["HQ"] // sizes["HKV"], "SHARED_PARTS": 16, "OWN_PARTS": 4}
    sizes |= head_tiles(sizes["D"], 2) | {"BLOCK": 64, "STAGES": 3}
    names = [name for name in attention._attend.arg_names if name.endswith("_ptr")]
    tables = ["position_ptr", "shared_ptr", "members_ptr", "starts_ptr", "lengths_ptr"]
    types = dict.fromkeys(names, "*bf16") | dict.fromkeys(tables, "*i32")
    types |= dict.fromkeys(["cos_ptr", "sin_ptr", "out_ptr", "lse_ptr"], "*fp32")
    types |= {"scale": "fp32", "eps": "fp32"}
    text, usage = compiled(attention._attend, sizes, tmp_path / "k.cubin", types, 4)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    copies = re.findall(r"LDGSTS\S*", text)
    assert copies
    assert all(copy.endswith(".128") for copy in copies), set(copies)
    assert "UBLKPF" in text.split("ACQBULK")[0], "the memory is asked for too late"
    assert loop(text) <= most
