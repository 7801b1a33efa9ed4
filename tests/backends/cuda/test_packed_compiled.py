"""Kernels with packed weights as compiled for Hopper, which needs no device: the assembly in them
is accepted, numbers stay in registers, and a weight costs few instructions."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ember.backends.cuda import packed, packed_few, packed_tables  # noqa: E402
from ember.model.packed import kernel_order  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    **dict.fromkeys(["x_ptr", "out_ptr", "norm_ptr", "residual_ptr", "bias_ptr"], "*bf16"),
    **dict.fromkeys(["overall_ptr", "table_ptr"], "*fp32"),
    "longs_ptr": "*i64",
    "words_ptr": "*i32",
    "scales_ptr": "*u8",
    "eps": "fp32",
}
TABLES = POINTERS | {"scales_ptr": "*fp32", "table_ptr": "*i32"}  # of what is looked up
KIND = {"BLOCK": 16, "FORMAT": "nvfp4", "HIGH_FIRST": False, "SCALED": True, "FAST": True}
TABLE = KIND | {"BLOCK": 64, "FORMAT": "nf4", "HIGH_FIRST": True}
MATVEC = {"K": 4096, "BN": 4, "BW": 64, "AHEAD": 3, "NORM": True, "RESIDUAL": False}
WIDE = {"K": 4096, "BM": 16, "BN": 64, "BW": 16, "SLABS": 1, "SPLITS": 1, "STAGES": 4}
SLABS = WIDE | {"BM": 8, "BN": 32, "SLABS": 2}
ROW = {"ONCE": False, "RESIDUAL": False, "SCALED": True, "FAST": True}


@pytest.mark.parametrize(
    ("out", "columns", "gated", "spilled", "most"),
    [
        (19456, 2560, True, 8, 2.05),  # an address
        (151936, 2560, False, 0, 2.0),
        (24576, 4096, True, 80, 2.1),  # faster than fewer programs at a time
        (34816, 5120, True, 64, 2.1),
    ],
)
def test_a_weight_of_one_row_costs_few_instructions(out, columns, gated, spilled, most, tmp_path):
    """All programs fit on the device; nothing but sums of warps is exchanged."""
    plan = packed.row_plan(out, columns, summed=False)
    sizes = {"K": columns, "BN": plan.rows, "SLABS": plan.slabs, "AHEAD": plan.ahead}
    options = {"KEEP": plan.keep, "NORM": True, "GATED": gated, "ACT": "silu" if gated else ""}
    options |= {"BIAS": False, "PDL": True}
    constants, file = sizes | ROW | options, tmp_path / "k.cubin"
    bound = {"maxnreg": plan.registers}
    text, usage = compiled(packed_few.packed_row, constants, file, warps=plan.slabs, **bound)
    assert int(re.search(r"STACK:(\d+)", usage)[1]) <= spilled, "numbers are spilled to memory"
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    assert plan.programs <= packed.MULTIPROCESSORS * (65536 // (32 * plan.slabs * registers))
    steps = -(-columns // (128 * plan.slabs))
    found = instructions(loop(text)) / (plan.rows * steps * 128 / 32)
    assert found < most, found
    assert text.count("SHFL") < 40
    assert text.count("STS") < 8
    products, reads = places(loop(text), "HMMA"), places(loop(text), "LDG.E.EF.128")
    early = sum(at < products[-1] for at in reads)
    assert early >= 2 * (steps - 1), "what is read for the next tile waits for all products"


@pytest.mark.parametrize(
    ("out", "columns", "summed", "registers", "most"),
    [
        (6144, 2560, False, 168, 2.8),
        (2560, 4096, True, 168, 2.6),
        (2560, 9728, True, 128, 2.6),
        (2560, 1040, True, 168, 4.5),
    ],
)
def test_a_weight_of_one_row_costs_few_instructions_where_each_tile_has_a_program(
    out, columns, summed, registers, most, tmp_path
):
    """All that a program reads is on its way at once, or as much as its registers hold."""
    plan = packed.row_plan(out, columns, summed=summed)
    assert plan.programs == -(-out // plan.rows)
    sizes = {"K": columns, "BN": plan.rows, "SLABS": plan.slabs, "AHEAD": plan.ahead}
    options = {"KEEP": plan.keep, "NORM": not summed, "GATED": False, "ACT": "", "BIAS": False}
    options |= {"PDL": True, "ONCE": True, "RESIDUAL": summed}
    constants, file = sizes | ROW | options, tmp_path / "k.cubin"
    extra = {"maxnreg": plan.registers} if plan.registers else {}
    text, usage = compiled(packed_few.packed_row, constants, file, POINTERS, plan.slabs, **extra)
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= registers
    most_spilled = 32 if summed else 0
    assert int(re.search(r"STACK:(\d+)", usage)[1]) <= most_spilled, "numbers are spilled to memory"
    if not summed:  # nothing but sums of warps is exchanged
        assert text.count("SHFL") < 40
        assert text.count("STS") < 8
    steps = -(-columns // (128 * plan.slabs))
    found = instructions(text) / (plan.rows * steps * 128 / 32)
    assert found < most, found


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("sizes", "warps", "most"),
    [(WIDE, 2, 4.8), (SLABS, 2, 4.0), (WIDE | {"BM": 64, "BN": 128}, 4, 3.8)],
)
def test_a_weight_of_more_rows_costs_few_instructions(sizes, warps, most, gated, tmp_path):
    options = {"GATED": gated, "ACT": "silu" if gated else "", "BIAS": False, "PDL": True}
    constants, file = sizes | KIND | options, tmp_path / "k.cubin"
    text, usage = compiled(packed._packed_wide, constants, file, POINTERS, warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    weights = sizes["BN"] * 8 * sizes["BW"] * sizes["SLABS"] / 32 / warps  # a thread's
    assert (found := instructions(loop(text)) / weights) < most, found


@pytest.mark.parametrize(
    ("out", "columns", "summed", "gated", "most"),
    [
        (19456, 2560, False, True, 2.8),
        (151936, 2560, False, False, 2.8),
        (2560, 9728, True, False, 2.8),
        (6144, 2560, False, False, 3.2),  # with all that is done once
        (2560, 4096, True, False, 3.3),
    ],
)
def test_a_weight_of_rows_in_registers_costs_few(out, columns, summed, gated, most, tmp_path):
    """Three programs fit on a multiprocessor; only sums of warps go through shared memory."""
    weight = SimpleNamespace(shape=(out, columns), format="nvfp4")
    cut = packed.skinny_tiling(weight, summed=summed)
    once = cut.programs * cut.rows >= out
    sizes = {"K": columns, "BN": cut.rows, "SLABS": cut.slabs, "AHEAD": cut.ahead, "ONCE": once}
    options = {"GATED": gated, "ACT": "silu" if gated else "", "BIAS": False}
    options |= {"SPLITS": cut.splits, "SCALED": True, "FAST": True, "PDL": True}
    types = POINTERS | ({"out_ptr": "*fp32"} if cut.splits > 1 else {})
    text, usage = compiled(
        packed_few.packed_skinny, sizes | options, tmp_path / "k", types, cut.warps,
        maxnreg=cut.registers,
    )  # fmt: skip
    assert "STACK:0" in usage, "numbers are spilled to memory"
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 65536 // (3 * 32 * cut.warps)
    steps = -(-columns // (128 * cut.slabs * cut.splits))
    assert once == (instructions(loop(text)) < 9)  # after the end there is one of its own
    found = instructions(text if once else loop(text)) / (cut.rows * steps * 128 / 32)
    assert found < most, found
    assert text.count("LDSM") == 0


@pytest.mark.parametrize("kind", ["gated", "summed", "plain", "large"])
def test_what_is_read_stays_in_its_lane(kind, tmp_path):
    plan = packed.PLANS[kind]
    columns = 2560 if kind == "large" else 4096  # of the head that it was timed with
    sizes = TABLE | {"K": columns, "BN": plan.rows, "BW": plan.longs, "AHEAD": plan.ahead}
    options = {"NORM": kind != "summed", "RESIDUAL": kind == "summed", "GATED": kind == "gated"}
    options |= {"ACT": "", "BIAS": False, "PDL": True}
    kernel, file = packed_tables.packed_matvec, tmp_path / "k.cubin"
    text, usage = compiled(kernel, sizes | options, file, TABLES, plan.warps)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    # Sums of a warp's lanes (five steps a row, and of squares), and of warps once.
    sums = 5 * (plan.rows * (1 + options["GATED"]) + options["NORM"])
    assert text.count("SHFL") <= 2 * sums
    assert text.count("STS") <= 2 * plan.rows


@pytest.mark.parametrize(("format", "block", "most"), [("nf4", 64, 7.0), ("int4", 32, 7.0)])
def test_a_weight_that_is_looked_up_costs_few_instructions(format, block, most, tmp_path):
    sizes = MATVEC | TABLE | {"FORMAT": format, "BLOCK": block, "HIGH_FIRST": format == "nf4"}
    sizes |= {"AHEAD": 2}
    options = {"GATED": False, "ACT": "", "BIAS": False, "PDL": True}
    text, usage = compiled(
        packed_tables.packed_matvec, sizes | options, tmp_path / "k.cubin", TABLES
    )
    assert "STACK:0" in usage, "numbers are spilled to memory"
    found = instructions(text) / (sizes["BN"] * sizes["K"] / 64)
    assert found < most, found


@pytest.mark.parametrize(("sizes", "most"), [(WIDE, 7.0), (SLABS, 6.6)])
def test_planes_that_are_looked_up_cost_few_instructions(sizes, most, tmp_path):
    sizes = sizes | TABLE
    options = {"GATED": False, "ACT": "", "BIAS": False, "PDL": True}
    text, usage = compiled(packed._packed_wide, sizes | options, tmp_path / "k.cubin", TABLES)
    assert "STACK:0" in usage, "numbers are spilled to memory"
    found = instructions(loop(text)) / (sizes["BN"] * 8 * sizes["BW"] * sizes["SLABS"] / 64)
    assert found < most, found


@pytest.mark.parametrize(("kind", "out"), [("gated", 320), ("summed", 300), ("plain", 300)])
def test_tiles_of_float32_fit_in_a_program_s_memory(kind, out, tmp_path):
    asked = {"gated": kind == "gated", "summed": kind == "summed"}
    tiling = packed.tiling_of(33, out, 1088, **asked, size=4)
    sizes = {"K": 1088, "BM": tiling.batch, "BN": tiling.rows, "BW": tiling.words}
    sizes |= {"SLABS": tiling.slabs, "SPLITS": tiling.splits, "STAGES": tiling.ahead}
    options = {"GATED": asked["gated"], "ACT": "", "BIAS": False, "PDL": True}
    types = POINTERS | dict.fromkeys(["x_ptr", "out_ptr", "bias_ptr"], "*fp32")
    constants = sizes | KIND | options | {"FAST": False}
    made = build(packed._packed_wide, constants, types, tiling.warps)
    assert made.metadata.shared <= 232448  # of compute capability 9.0


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", ["*fp32", "*fp16"])
def test_one_row_in_other_types_compiles(kind, once):
    names = ["x_ptr", "out_ptr", "norm_ptr", "residual_ptr", "bias_ptr"]
    sizes = {"K": 1040, "BN": 16, "SLABS": 4, "AHEAD": 2, "KEEP": True, "NORM": True}
    options = {"GATED": False, "ACT": "", "BIAS": True, "PDL": True}
    constants = sizes | options | ROW | {"FAST": False, "ONCE": once}
    made = build(packed_few.packed_row, constants, POINTERS | dict.fromkeys(names, kind), 4)
    assert made.metadata.shared <= 232448


def compiled(
    kernel, constants: dict, file: Path, types: dict = POINTERS, warps: int = 2, **options
) -> tuple[str, str]:
    """Instructions of a kernel for compute capability 9.0, and what it uses."""
    file.write_bytes(build(kernel, constants, types, warps, **options).asm["cubin"])
    return tool("nvdisasm", "-c", file), tool("cuobjdump", "-res-usage", file)


def build(kernel, constants: dict, types: dict, warps: int, **more):
    if "TILED" in kernel.arg_names:
        tiled = kernel_order(constants["K"], ()) == "tiles"
        constants = constants | {"TILED": tiled and constants.get("FORMAT", "nvfp4") == "nvfp4"}
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
    options = {"num_warps": warps, "num_stages": constants.get("STAGES", 1)} | more
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def tool(name: str, option: str, file: Path) -> str:
    done = subprocess.run([TOOLS / name, option, file], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def instructions(text: str) -> int:
    return len(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+\S", text, re.MULTILINE))


def places(text: str, name: str) -> list[int]:
    """The lines in which such an instruction stands."""
    return [at for at, line in enumerate(text.splitlines()) if f" {name}" in line]


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
