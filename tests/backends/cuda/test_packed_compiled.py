"""Kernels with packed weights as compiled for Hopper, which needs no device: the assembly in them
is accepted, numbers stay in registers, and a weight costs few instructions."""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ember.backends.cuda import packed  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    **dict.fromkeys(["x_ptr", "out_ptr", "norm_ptr", "residual_ptr", "bias_ptr"], "*bf16"),
    **dict.fromkeys(["overall_ptr", "table_ptr"], "*fp32"),
    "longs_ptr": "*i64",
    "words_ptr": "*i32",
    "scales_ptr": "*u8",
    "eps": "fp32",
}
KIND = {"BLOCK": 16, "FORMAT": "nvfp4", "HIGH_FIRST": False, "SCALED": True, "FAST": True}
MATVEC = {"K": 4096, "BN": 4, "BW": 64, "AHEAD": 3, "NORM": True, "RESIDUAL": False}
WIDE = {"K": 4096, "BM": 16, "BN": 64, "BW": 16, "SLABS": 1, "SPLITS": 1, "STAGES": 4}
WIDE |= {"PLACED": False, "PLACES": False}
SLABS = WIDE | {"BM": 8, "BN": 32, "SLABS": 2}
FLOAT16 = {"x_ptr": "*fp16"}


@pytest.mark.parametrize("gated", [False, True])
def test_a_weight_of_one_row_costs_few_instructions(gated, tmp_path):
    sizes = MATVEC | ({"BN": MATVEC["BN"] // 2} if gated else {})
    options = {"GATED": gated, "ACT": "silu" if gated else "", "BIAS": False, "PDL": True}
    text, usage = compiled(packed._packed_matvec, sizes | KIND | options, tmp_path / "k.cubin")
    assert "STACK:0" in usage, "numbers are spilled to memory"
    found = instructions(text) / (sizes["BN"] * (1 + gated) * sizes["K"] / 64)
    assert found < 5.2, found


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("sizes", "types", "warps", "most"),
    [
        (WIDE, {}, 2, 4.8),
        (SLABS, {}, 2, 4.0),
        (SLABS | {"PLACED": True}, FLOAT16, 2, 3.3),
        (WIDE | {"BM": 64, "BN": 128, "PLACED": True}, FLOAT16, 4, 3.8),
    ],
)
def test_a_weight_of_more_rows_costs_few_instructions(sizes, types, warps, most, gated, tmp_path):
    options = {"GATED": gated, "ACT": "silu" if gated else "", "BIAS": False, "PDL": True}
    options |= {"PLACES": gated and sizes["PLACED"]}
    constants, file = sizes | KIND | options, tmp_path / "k.cubin"
    text, usage = compiled(packed._packed_wide, constants, file, POINTERS | types, warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    weights = sizes["BN"] * 8 * sizes["BW"] * sizes["SLABS"] / 32 / warps  # a thread's
    assert (found := instructions(loop(text)) / weights) < most, found


@pytest.mark.parametrize(
    ("columns", "splits", "gated", "types", "most"),
    [(2560, 1, True, FLOAT16, 3.2), (2560, 1, False, FLOAT16, 3.1), (9728, 5, False, {}, 3.9)],
)
def test_a_weight_of_rows_in_registers_costs_few(columns, splits, gated, types, most, tmp_path):
    """Three programs fit on a multiprocessor; only sums of warps go through shared memory."""
    cut = packed.SKINNY
    sizes = {"K": columns, "BN": cut.rows, "SLABS": cut.slabs, "AHEAD": cut.ahead, "SPLITS": splits}
    options = {"GATED": gated, "ACT": "silu" if gated else "", "BIAS": False, "PLACES": gated}
    options |= {"SCALED": True, "FAST": True, "PDL": True}
    types = POINTERS | {"scales_ptr": "*i16"} | types
    file = tmp_path / "k.cubin"
    text, usage = compiled(packed._packed_skinny, sizes | options, file, types, cut.warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 65536 // (3 * 32 * cut.warps)
    steps = -(-columns // (128 * cut.slabs * splits))
    found = instructions(loop(text)) / (cut.rows * steps * 128 / 32)
    assert found < most, found
    assert text.count("LDSM") == 0


@pytest.mark.parametrize("kind", ["gated", "summed", "plain", "large"])
def test_what_is_read_stays_in_its_lane(kind, tmp_path):
    plan = packed.PLANS[kind]
    sizes = {"K": 4096, "BN": plan.rows, "BW": plan.longs, "AHEAD": plan.ahead}
    options = {"NORM": kind != "summed", "RESIDUAL": kind == "summed", "GATED": kind == "gated"}
    options |= {"ACT": "", "BIAS": False, "PDL": True}
    kernel, file = packed._packed_matvec, tmp_path / "k.cubin"
    text, usage = compiled(kernel, KIND | sizes | options, file, warps=plan.warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    # Sums of a warp's lanes (five steps a row, and of squares), and of warps once.
    sums = 5 * (plan.rows * (1 + options["GATED"]) + options["NORM"])
    assert text.count("SHFL") <= 2 * sums
    assert text.count("STS") <= 2 * plan.rows


@pytest.mark.parametrize(("format", "block", "most"), [("nf4", 64, 7.0), ("int4", 32, 7.0)])
def test_a_weight_that_is_looked_up_costs_few_instructions(format, block, most, tmp_path):
    sizes = MATVEC | KIND | {"FORMAT": format, "BLOCK": block, "HIGH_FIRST": format == "nf4"}
    sizes |= {"AHEAD": 2}
    options = {"GATED": False, "ACT": "", "BIAS": False, "PDL": True}
    types = POINTERS | {"scales_ptr": "*fp32", "table_ptr": "*i32"}
    text, usage = compiled(packed._packed_matvec, sizes | options, tmp_path / "k.cubin", types)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    found = instructions(text) / (sizes["BN"] * sizes["K"] / 64)
    assert found < most, found


@pytest.mark.parametrize(("sizes", "most"), [(WIDE, 7.0), (SLABS, 6.6)])
def test_planes_that_are_looked_up_cost_few_instructions(sizes, most, tmp_path):
    sizes = sizes | KIND | {"FORMAT": "nf4", "BLOCK": 64, "HIGH_FIRST": True}
    options = {"GATED": False, "ACT": "", "BIAS": False, "PDL": True}
    types = POINTERS | {"scales_ptr": "*fp32", "table_ptr": "*i32"}
    text, usage = compiled(packed._packed_wide, sizes | options, tmp_path / "k.cubin", types)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    found = instructions(loop(text)) / (sizes["BN"] * 8 * sizes["BW"] * sizes["SLABS"] / 64)
    assert found < most, found


@pytest.mark.parametrize(("kind", "out"), [("gated", 320), ("summed", 300), ("plain", 300)])
def test_tiles_of_float32_fit_in_a_program_s_memory(kind, out, tmp_path):
    asked = {"gated": kind == "gated", "summed": kind == "summed"}
    tiling = packed.tiling_of(33, out, 1088, **asked, size=4)
    sizes = {"K": 1088, "BM": tiling.batch, "BN": tiling.rows, "BW": tiling.words}
    sizes |= {"SLABS": tiling.slabs, "SPLITS": tiling.splits, "STAGES": tiling.ahead}
    sizes |= {"PLACED": True, "PLACES": asked["gated"]}
    options = {"GATED": asked["gated"], "ACT": "", "BIAS": False, "PDL": True}
    types = POINTERS | dict.fromkeys(["x_ptr", "out_ptr", "bias_ptr"], "*fp32")
    constants = sizes | KIND | options | {"FAST": False}
    made = build(packed._packed_wide, constants, types, tiling.warps)
    assert made.metadata.shared <= 232448  # of compute capability 9.0


def compiled(
    kernel, constants: dict, file: Path, types: dict = POINTERS, warps: int = 2
) -> tuple[str, str]:
    """Instructions of a kernel for compute capability 9.0, and what it uses."""
    file.write_bytes(build(kernel, constants, types, warps).asm["cubin"])
    return tool("nvdisasm", "-c", file), tool("cuobjdump", "-res-usage", file)


def build(kernel, constants: dict, types: dict, warps: int):
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (n,): [["tt.divisibility", 16]]
        for n, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name in ("N", "N_BESIDE")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": constants.get("STAGES", 1)}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def tool(name: str, option: str, file: Path) -> str:
    done = subprocess.run([TOOLS / name, option, file], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def instructions(text: str) -> int:
    return len(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+\S", text, re.MULTILINE))


def loop(text: str) -> str:
    """The longest loop."""
    lines, labels, longest = text.splitlines(), {}, ""
    for at, line in enumerate(lines):
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = at
        jump = re.search(r"BRA\S*\s+`\((\.L_x_\d+)\)", line)
        if jump and jump[1] in labels:
            longest = max(longest, "\n".join(lines[labels[jump[1]] : at + 1]), key=instructions)
    return longest
