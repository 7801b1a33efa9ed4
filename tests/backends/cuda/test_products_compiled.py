"""Products of one row as compiled for Hopper, which needs no device: nothing is spilled to memory,
and what does not depend on the kernel before is read before that is waited for."""

import pytest

pytest.importorskip("triton")

from ember.backends.cuda import products
from ember.backends.cuda.step import matvec_plan
from tests.backends.cuda.test_packed_compiled import compiled

PLAIN = {"NORM": "", "MORE": 0, "BESIDE": False, "MORE_BIAS": False, "READY": False}
CASES = {  # at the sizes of Pythia-2.8B and Qwen3-4B: options, and tiles read after the wait
    "qkv and up": ({"K": 2560, "NORM": "layer", "BESIDE": True, "ACT": "gelu"}, 5),
    "down and o": ({"K": 10240, "MORE": 2560, "RESIDUAL": True, "READY": True}, 4),
    "qkv": ({"K": 2560, "NORM": "rms"}, 0),
    "gate and up": ({"K": 2560, "NORM": "rms", "GATED": True, "ACT": "silu"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_on_their_way_before_the_kernel_waits(case, tmp_path):
    given, most = CASES[case]
    options = PLAIN | {"GATED": False, "ACT": "", "RESIDUAL": False} | given
    gated, summed = options["GATED"], options["RESIDUAL"]
    columns, centred = options["K"] + options["MORE"], options["NORM"] == "layer"
    plan = matvec_plan(columns, gated=gated, summed=summed, centred=centred)
    options |= {"BN": plan.rows, "BK": plan.columns, "AHEAD": plan.ahead}
    options |= {"BIAS": True, "MORE_BIAS": bool(options["MORE"]), "PDL": True}
    types = {name: "*bf16" for name in products._matvec.arg_names if name.endswith("_ptr")}
    file, types = tmp_path / "k.cubin", types | {"eps": "fp32"}
    text, usage = compiled(products._matvec, options, file, types, plan.warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    before, after = text.split("ACQBULK")
    assert before.count("LDG.E.EF.128") > 0
    assert after.count("LDG.E.EF.128") <= most * plan.rows
