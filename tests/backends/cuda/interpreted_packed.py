"""Products with packed weights against the dequantised weight, under Triton's interpreter."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ember.backends.cuda import packed, packed_codes, packed_tables
from ember.backends.packing import _stack
from ember.formats.registry import FORMATS as KINDS
from ember.model.decoder import ACTIVATION_FUNCTIONS
from ember.model.packed import PACKED, lay

EPS = 1e-5
CUT = 8e-3  # the interpreter cuts numbers off where the device rounds them
FORMATS = sorted(PACKED)
PARTS = {"words": ((22, 7, 13), 192), "tiles": ((24, 8, 16), 256)}  # NVFP4's order by size
SMALL = packed.Plan(rows=4, longs=4, ahead=2, warps=1)
ROW = packed.RowPlan(rows=16, slabs=2, ahead=2, programs=2, keep=True)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weight_of(name, *rows, columns=192, scale=0.02):
    """Parts of different size over each other, each with its own scale, as kernels read them."""
    parts = [
        PACKED[name].of(scale * 3**n * draw(count, columns, seed=n)).matrix
        for n, count in enumerate(rows)
    ]
    return _stack(parts).lay()


def relative(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def spied(monkeypatch, module, name) -> list:
    """The calls of a function from now on."""
    calls, call = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: calls.append(given) or call(*given))
    return calls


def test_codes_lie_in_tiles_where_these_divide_a_weight():
    for order, (rows, columns) in PARTS.items():
        assert weight_of("nvfp4", *rows, columns=columns).order == order
        assert weight_of("nf4", *rows, columns=columns).order == "file"
    assert weight_of("nvfp4", 22, 2, columns=256).order == "words", "a part ends within a tile"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", PARTS)
@pytest.mark.parametrize("variant", ["plain", "norm", "all", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row(name, order, variant, dtype):
    gated, (parts, columns) = variant == "gated", PARTS[order]
    weight = weight_of(name, *((24, 24) if gated else parts), columns=columns)
    n = 24 if gated else len(weight)
    x = draw(1, weight.shape[1]).to(dtype)
    norm = None if variant == "plain" else (1 + 0.1 * draw(weight.shape[1])).to(dtype)
    bias = draw(len(weight)).to(dtype) if variant == "all" else None
    residual = draw(1, n).to(dtype) if variant == "all" else None
    wide = x.double()
    if norm is not None:
        wide = F.rms_norm(wide, wide.shape[1:], norm.double(), EPS)
    exact = F.linear(wide, weight.dense().double(), None if bias is None else bias.double())
    if gated:
        gate, up = exact.chunk(2, 1)
        exact = F.silu(gate) * up
    if residual is not None:
        exact = exact + residual.double()
    out = torch.empty(1, n, dtype=dtype)
    options = {"norm": norm, "eps": EPS, "bias": bias, "residual": residual}
    options |= {"gated": True, "act": "silu"} if gated else {}
    plan = ROW if name == "nvfp4" else SMALL
    packed.matvec(x, weight, out, plan=plan, **options)
    assert relative(out, exact) < (1e-6 if dtype == torch.float32 else CUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("columns", "parts"),
    [*((n, (20, 24, 9)) for n in (208, 512, 1104)), *((n, (24, 24, 8)) for n in (512, 1152))],
)
@pytest.mark.parametrize(
    ("keep", "summed", "ahead"), [(True, False, 3), (False, False, 1), (True, True, 9), (0, 1, 2)]
)
def test_one_row_of_all_cuts(keep, summed, ahead, columns, parts, dtype):
    """x in registers or read again, a program for each tile or fewer that go on, columns that are
    not whole, an odd number of blocks."""
    weight, n = weight_of("nvfp4", *parts, columns=columns), sum(parts)
    x, bias, residual = (draw(1, size).to(dtype) for size in (columns, n, n))
    plan = packed.RowPlan(16, slabs=2, ahead=ahead, programs=9 if summed else 2, keep=bool(keep))
    out = torch.full((1, n), float("nan"), dtype=dtype)
    options = {"bias": bias[0], "residual": residual, "summed": bool(summed)}
    packed.matvec(x, weight, out, plan=plan, **options)
    exact = F.linear(x.double(), weight.dense().double(), bias[0].double()) + residual.double()
    assert relative(out, exact) < (1e-6 if dtype == torch.float32 else CUT)


def test_a_row_is_cut_by_what_registers_hold():
    cut = packed.row_plan
    assert cut(19456, 2560, summed=False) == packed.RowPlan(16, 4, 5, 396, True, registers=168)
    assert cut(6144, 2560, summed=False).programs == 384
    assert cut(6144, 8192, summed=False) == packed.RowPlan(16, 8, 5, 264, True, registers=128)
    many = cut(6144, 32768, summed=False)
    assert (many.slabs, many.programs, many.registers, many.keep) == (16, 132, 128, False)
    assert cut(2560, 4096, summed=True) == packed.RowPlan(16, 4, 8, 160, keep=True)
    assert cut(2560, 9728, summed=True) == packed.RowPlan(16, 8, 6, 160, keep=False, registers=128)


def test_codes_that_are_not_laid_are_refused():
    weight, x = weight_of("nvfp4", 16).lay("file"), draw(1, 192)
    for call in (lambda: packed.product(x, weight), lambda: packed.dense(weight, x.dtype)):
        with pytest.raises(ValueError, match="not laid"):
            call()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", PARTS)
@pytest.mark.parametrize(
    "variant", ["plain", "bias", "gated", "split", "short", "slabs", "gated slabs"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_some_rows(name, order, variant, dtype):
    gated, rows, (parts, columns) = variant.startswith("gated"), 5, PARTS[order]
    weight = weight_of(name, *((24, 24) if gated else parts), columns=columns)
    n, k = (24 if gated else len(weight)), weight.shape[1]
    splits = 2 if variant == "split" else 1
    tiling = packed.Tiling(batch=16, rows=16, words=16, ahead=2, warps=1, splits=splits)
    if variant == "short":
        tiling = replace(tiling, words=8)
    if variant.endswith("slabs"):
        tiling = replace(tiling, batch=8, words=8, warps=2, slabs=2)
    x = draw(rows, k).to(dtype)
    bias = draw(len(weight)).to(dtype) if variant == "bias" else None
    exact = F.linear(x.double(), weight.dense().double(), None if bias is None else bias.double())
    if gated:
        gate, up = exact.chunk(2, 1)
        exact = ACTIVATION_FUNCTIONS["gelu"](gate) * up
    out = torch.empty(splits, rows, n) if splits > 1 else torch.empty(rows, n, dtype=dtype)
    options = {"gated": True, "act": "gelu"} if gated else {}
    packed.wide(x, weight, out, tiling=tiling, bias=bias, **options)
    found = out.sum(0) if splits > 1 else out
    assert relative(found, exact) < (1e-6 if dtype == torch.float32 else CUT)


@pytest.mark.parametrize("variant", ["plain", "bias", "gated", "split"])
@pytest.mark.parametrize(
    ("columns", "slabs", "ahead", "parts"),
    [
        *((192, 1, 2, (30, 7, 11)), (1024, 4, 3, (30, 7, 11)), (336, 2, 3, (30, 7, 11))),
        *((1024, 4, 3, (32, 8, 8)), (384, 2, 3, (32, 8, 8))),
    ],
)
@pytest.mark.parametrize(
    ("rows", "dtype", "programs"),
    [(2, torch.float32, 2), (8, torch.bfloat16, 2), (3, torch.float32, 5)],
)
def test_rows_that_stay_in_registers(variant, columns, slabs, ahead, parts, rows, dtype, programs):
    """A program for each tile or fewer, tiles and columns that are not whole, an odd number of
    blocks."""
    gated, splits = variant == "gated", 2 if variant == "split" else 1
    weight = weight_of("nvfp4", *((40, 40) if gated else parts), columns=columns)
    bias = None
    n = 40 if gated else 48
    x = draw(rows, columns).to(dtype)
    if variant == "bias":
        bias = draw(n)
    exact = F.linear(x.double(), weight.dense().double(), None if bias is None else bias.double())
    if gated:
        gate, up = exact.chunk(2, 1)
        exact = ACTIVATION_FUNCTIONS["gelu"](gate) * up
    out = torch.full((splits, rows, n) if splits > 1 else (rows, n), float("nan"))
    tiling = packed.Tiling(8, 16, 16, ahead, slabs, slabs, splits, programs=programs)
    options = {"gated": True, "act": "gelu"} if gated else {"bias": bias}
    packed.wide(x, weight, out, tiling=tiling, **options)
    assert relative(out.sum(0) if splits > 1 else out, exact) < 1e-6


def test_who_cannot_stay_in_registers_is_refused():
    for name, x in (("nf4", draw(3, 64)), ("nvfp4", draw(9, 64))):
        weight = weight_of(name, 16, columns=64)
        with pytest.raises(ValueError, match="up to 8 rows"):
            packed.wide(x, weight, torch.empty(len(x), 16), tiling=packed.SKINNY)


def test_columns_are_shared_so_that_x_fits_in_registers():
    def cut(out, columns, summed, format="nvfp4"):
        matrix = PACKED[format].of(torch.zeros(1, columns)).matrix
        matrix = replace(matrix, codes=matrix.codes.expand(out, -1))
        return packed.skinny_tiling(matrix, summed=summed)

    down, gate_up, wide = cut(2560, 9728, True), cut(19456, 2560, False), cut(6144, 8192, False)
    assert (down.splits, down.programs, down.slabs, down.ahead) == (4, 80, 4, 5)
    assert (gate_up.splits, gate_up.programs, gate_up.slabs, gate_up.ahead) == (1, 396, 4, 3)
    assert (wide.splits, wide.programs, wide.slabs, wide.warps) == (1, 132, 8, 8)
    qkv, o, long = cut(6144, 2560, False), cut(2560, 4096, True), cut(6144, 4096, False)
    assert (qkv.programs, qkv.ahead, o.splits, o.programs, o.ahead) == (384, 5, 2, 160, 5)
    assert (long.programs, long.ahead) == (384, 3), "eight steps leave no room for a whole tile"
    assert cut(512, 16384, False) is None, "one share of so many columns is too much"
    assert cut(512, 16384, True).splits == 7
    assert cut(512, 256, False, "nf4") is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("parts", "columns"), PARTS.values())
def test_the_weight_itself(name, parts, columns):
    weight = weight_of(name, *parts, columns=columns)
    assert torch.equal(packed.dense(weight, torch.float32), weight.dense())
    half = packed.dense(weight, torch.bfloat16)
    assert relative(half, weight.dense().double()) < CUT


@pytest.mark.parametrize("rows", [1, 2, 20, 70])
@pytest.mark.parametrize("programs", [0, 100])
def test_a_product_of_any_number_of_rows(rows, programs, monkeypatch):
    """Decoded in registers or written dense, by rows and by how many programs would decode."""
    monkeypatch.setattr(packed, "LEAST_PROGRAMS", programs)
    dense = spied(monkeypatch, packed, "dense")
    weight, x, bias = weight_of("nvfp4", 22, 7, 13), draw(rows, 192), draw(42)
    exact = F.linear(x.double(), weight.dense().double(), bias.double())
    assert relative(packed.product(x, weight, bias), exact) < 1e-6
    assert len(dense) == (rows > 64 or (rows > 16 and programs > 3))


@pytest.mark.parametrize(("columns", "splits"), [(512, 1), (9728, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_of_few_rows_is_the_step_s(columns, splits, biased, monkeypatch):
    """x stays in registers; columns that are too many for them are shared."""
    kernels = spied(monkeypatch, packed, "_operands")
    weight, x = weight_of("nvfp4", 24, 8, columns=columns), draw(5, columns).bfloat16()
    bias = draw(32).bfloat16() if biased else None
    tiling = packed.skinny_tiling(weight, summed=splits > 1)
    assert tiling.splits == splits
    exact = F.linear(x.double(), weight.dense().double(), None if bias is None else bias.double())
    assert relative(packed.product(x, weight, bias), exact) < CUT
    assert len(kernels) == 1, "nothing else decodes"
    expected = torch.empty(splits, 5, 32)
    packed.wide(x, weight, expected if splits > 1 else expected[0], tiling=tiling)
    found = packed.product(x, weight)
    torch.testing.assert_close(found.float(), expected.sum(0), rtol=CUT, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e4])
def test_small_and_large_weights_lose_nothing_on_the_way(scale):
    """Exponents are re-biased before the product, the overall scale comes before rounding."""
    weight, x = weight_of("nvfp4", 16, scale=scale), draw(1, 192)
    exact = x.double() @ weight.dense().double().T
    for rows in (1, 3):
        found = packed.product(x.expand(rows, -1).contiguous(), weight)
        assert relative(found[:1], exact) < 1e-6


def test_a_half_result_overflows_only_where_it_must():
    """Codes times block scales are beyond float16; with the overall scale they are not."""
    weight = PACKED["nvfp4"].of(torch.full((16, 256), 0.01)).matrix.lay()
    x = torch.full((2, 256), 100.0, dtype=torch.float16)
    found = packed.product(x, weight)
    torch.testing.assert_close(found.float(), torch.full((2, 16), 256.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_pairs_are_decoded_by_the_instructions_that_the_device_runs(scaled):
    """The assembly, carried out here on all codes at all places and all scales, gives what the
    plain form gives."""
    values = np.array(e2m1_values())
    codes = np.random.default_rng(0).integers(16, size=(512, 8), dtype=np.uint32)
    scales = np.arange(512, dtype=np.uint32) % 127  # of E4M3, denormals too
    held, factor = {"$4": laid_words_of(codes)}, np.full(512, 2.0**-126)
    if scaled:
        [held["$5"]] = ptx(packed_codes.SCALE.value, {"$1": scales}, 1)
        factor = e4m3(scales) / 2.0**7
    text = packed_codes.SCALED_PAIRS if scaled else packed_codes.PAIRS
    for plane, register in enumerate(ptx(text.value, held, 4)):
        wanted = factor[:, None] * values[codes[:, 2 * plane : 2 * plane + 2]]
        np.testing.assert_array_equal(bfloat16(halves(register)), wanted)


def test_scales_are_converted_by_the_instructions_that_the_device_runs():
    both = np.random.default_rng(0).integers(127, size=(512, 2), dtype=np.uint32)
    found = ptx(packed_codes.TWO_SCALES.value, {"$2": both[:, 0] | both[:, 1] << np.uint32(8)}, 2)
    for one, scales in zip(found, both.T, strict=True):
        np.testing.assert_array_equal(one.view(np.float32) * 2.0**8, e4m3(scales))


def test_x_is_raised_by_the_instructions_that_the_device_runs():
    """As far as codes are too small and no further, with a norm's weight rounded once."""
    x, by = (draw(512, 2, seed=n).bfloat16() for n in range(2))
    held = {"$1": rounded(x.double().numpy()), "$2": rounded(by.double().numpy())}
    [found] = ptx(packed_codes.RAISED.value, held, 1)
    np.testing.assert_array_equal(bfloat16(halves(found)), x.double().numpy() * 2.0**96)
    [found] = ptx(packed_codes.NORMED_RAISED.value, held, 1)
    exact = (x * by).double().numpy()
    np.testing.assert_array_equal(bfloat16(halves(found)), exact * packed_codes.RAISE.value)


@pytest.mark.parametrize("format", ["nf4", "int4"])
def test_pairs_are_looked_up_by_the_instructions_that_the_device_runs(format):
    values = packed.values_of(format).bfloat16().double().numpy()
    high_first = KINDS[format].high_first
    codes = np.random.default_rng(0).integers(16, size=(512, 8), dtype=np.uint32)
    scales = torch.rand(512).bfloat16()
    table = packed._words(format, torch.device("cpu"), torch.bfloat16)[0].numpy().view(np.uint32)
    held = {f"${6 + n}": np.full(512, word, np.uint32) for n, word in enumerate(table)}
    held["$4"] = words_of(codes[:, np.arange(8) ^ high_first])
    held["$5"] = scales.view(torch.int16).numpy().astype(np.uint32)
    text = packed_codes.HIGH_PAIRS if high_first else packed_codes.LOW_PAIRS
    for plane, register in enumerate(ptx(text.value, held, 4)):
        exact = scales.double().numpy()[:, None] * values[codes[:, 2 * plane : 2 * plane + 2]]
        np.testing.assert_allclose(bfloat16(halves(register)) * 2.0**7, exact, rtol=2.0**-8)


@pytest.mark.parametrize("format", ["nf4", "int4"])
def test_codes_are_looked_up_by_the_instructions_that_the_device_runs(format):
    values = (packed.values_of(format) / 2.0**6).half().numpy()
    codes = np.random.default_rng(2).integers(16, size=(512, 8), dtype=np.uint32)
    high_first = KINDS[format].high_first
    place = np.arange(8) ^ high_first
    table = packed._words(format, torch.device("cpu"), torch.float16)[0].numpy().view(np.uint32)
    held = {f"${10 + n}": np.full(512, word, np.uint32) for n, word in enumerate(table)}
    found = ptx(packed_tables.looked_up(high_first), {"w": words_of(codes[:, place])} | held, 0)
    for register, pair in (("a0", [0, 2]), ("a1", [1, 3]), ("a2", [4, 6]), ("a3", [5, 7])):
        half = halves(found[register]).astype(np.uint16).view(np.float16)
        np.testing.assert_array_equal(half, values[codes[:, pair]])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15])
def test_x_is_made_ready_by_the_instructions_that_the_device_runs(norm, size):
    """Pairs times their scale are x, each as exact as the largest of 16 lets it be."""
    x, by = (draw(512, 16, seed=n).bfloat16() for n in range(2))
    x *= size
    x[0] = 0.0
    held = {f"${10 + n}": longs_of(x)[:, n] for n in range(4)}
    if norm:
        held |= {f"${14 + n}": longs_of(by)[:, n] for n in range(4)}
    text = packed_tables.NORMED_COLUMNS if norm else packed_tables.COLUMNS
    *pairs, scale = ptx(text.value, held, 9)
    wide = x.double().numpy() * (by.double().numpy() if norm else 1.0)
    scale = scale.view(np.float32)[:, None] / 2.0**6
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    order += [n + 8 for n in order]
    found = np.concatenate([halves(r).astype(np.uint16).view(np.float16) for r in pairs], 1)
    assert np.abs(found).max() < 2.0**15
    np.testing.assert_allclose(
        found * scale.astype(np.float64),
        wide[:, order],
        rtol=2.0**-8 if norm else 0,
        atol=np.abs(wide).max() * 2.0**-38,
    )
    if norm:
        squares = held["$9"].view(np.float32)
        np.testing.assert_allclose(squares, (x.float() ** 2).sum(1).numpy(), rtol=1e-6)


def longs_of(x):
    """Four bfloat16 in 64 bits, the first lowest."""
    return x.view(torch.int16).numpy().view(np.uint64)


def words_of(codes):
    """Eight codes in 32 bits, the first lowest."""
    return (codes << (4 * np.arange(8, dtype=np.uint32))).sum(1, dtype=np.uint32)


def laid_words_of(codes):
    """The same as `lay` puts them."""
    bytes_ = torch.from_numpy(words_of(codes).view(np.uint8).reshape(len(codes), 4))
    return lay(bytes_, "words").numpy().view(np.uint32)[:, 0]


def e4m3(bits):
    return torch.from_numpy(bits.astype(np.uint8)).view(torch.float8_e4m3fn).double().numpy()


def e2m1_values():
    from ember.model.packed import values_of

    return values_of("nvfp4").double().tolist()


def halves(register):
    return np.stack([register & 0xFFFF, register >> 16], 1)


def bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def rounded(numbers):
    """Pairs of numbers (n, 2) as bfloat16, in 32 bits."""
    bits = torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy()
    return paired(bits)


def paired(halves):
    both = halves.view(np.uint16).astype(np.uint32)
    return both[:, 0] | both[:, 1] << np.uint32(16)


def each_half(call, *registers):
    return rounded(call(*(bfloat16(halves(register)) for register in registers)))


def ptx(text: str, held: dict, outputs: int):
    """Outputs $0 … of a few instructions on 32-bit registers; of 0 outputs, all registers."""
    size = len(next(iter(held.values())))

    def value(name):
        if name.startswith("0f"):
            name = "0x" + name[2:]
        return held[name] if name in held else np.full(size, int(name, 0), np.uint32)

    for line in re.sub(r"\{(\w+), *(\w+)\}", r"\1:\2", text).split(";"):
        words = line.replace("{", "").replace("}", "").replace(",", " ").split()
        if not words or words[0] == ".reg":
            continue
        operation, target, *sources = words
        x = [value(name) for name in sources]
        if ":" in target:
            bits = 16 if operation == "mov.b32" else 32
            mask = x[0].dtype.type(2**bits - 1)
            parts = x[0] & mask, x[0] >> x[0].dtype.type(bits)
            held |= {
                n: part.astype(np.uint32) for n, part in zip(target.split(":"), parts, strict=True)
            }
            continue
        if operation in ("mov.b32", "mov.f32"):
            out = x[0]
        elif operation in ("shr.b32", "shr.u32"):
            out = x[0] >> x[1]
        elif operation == "shf.l.wrap.b32":
            out = (x[1] << x[2]) | (x[0] >> (np.uint32(32) - x[2]))
        elif operation == "mul.lo.u32":
            out = x[0] * x[1]
        elif operation == "cvt.f32.f16":
            half = x[0].astype(np.uint16).view(np.float16)
            out = half.astype(np.float32).view(np.uint32)
        elif operation == "shl.b32":
            out = x[0] << x[1]
        elif operation == "and.b32":
            out = x[0] & x[1]
        elif operation == "sub.u32":
            out = x[0] - x[1]
        elif operation == "max.u32":
            out = np.maximum(x[0], x[1])
        elif operation == "lop3.b32" and sources[3] == "0x28":
            out = (x[0] ^ x[1]) & x[2]
        elif operation == "lop3.b32" and sources[3] == "0xEA":
            out = (x[0] & x[1]) | x[2]
        elif operation == "lop3.b32" and sources[3] == "0xCA":
            out = (x[0] & x[1]) | (~x[0] & x[2])
        elif operation == "fma.rn.bf16x2" and sources[2] == "z":  # adds -0
            out = each_half(np.multiply, x[0], x[1])
        elif operation == "mul.rn.f16x2":
            a, b = (halves(register).astype(np.uint16).view(np.float16) for register in x)
            out = paired(a * b)
        elif operation == "max.xorsign.abs.bf16x2":
            out = each_half(lambda a, b: np.maximum(abs(a), abs(b)), x[0], x[1])
        elif operation == "fma.rn.f32":
            a, b, c = (register.view(np.float32).astype(np.float64) for register in x)
            out = (a * b + c).astype(np.float32).view(np.uint32)
        elif operation == "cvt.rn.f16x2.f32":  # the first to the upper half
            both = np.stack([x[1].view(np.float32), x[0].view(np.float32)], 1)
            out = paired(both.astype(np.float16))
        elif operation == "cvt.rn.f16x2.e4m3x2":  # the lower byte to the lower half
            two = np.stack([x[0] & 0xFF, x[0] >> 8], 1).astype(np.uint8)
            out = paired(torch.from_numpy(two).view(torch.float8_e4m3fn).half().numpy())
        elif operation == "prmt.b32":
            parts = [x[n // 4] >> np.uint32(8 * (n % 4)) for n in range(8)]
            both = np.stack(parts) & np.uint32(255)
            picks = np.stack([x[2] >> np.uint32(4 * n) & 15 for n in range(4)])
            bytes_ = np.take_along_axis(both, picks & 7, 0)
            signs = np.where(bytes_ & 128, 255, 0)
            bytes_ = np.where(picks & 8, signs, bytes_).astype(np.uint32)
            out = sum(byte << np.uint32(8 * n) for n, byte in enumerate(bytes_))
        else:
            raise AssertionError(f"unknown instruction {line}")
        held[target] = out.astype(np.uint32)
    return [held[f"${n}"] for n in range(outputs)] if outputs else held
