"""Products with 4-bit weights: codes and scales become numbers in registers (W4A16).

Contract. What `products` computes with dense weights, for a `PackedMatrix`: `matvec` one row of x,
`wide` more; `dense` writes the weight itself, for the library's products of many rows. Sums are
float32; an overall scale is applied to them, before anything is rounded to a half format. NVFP4's
codes have to lie as `ember.model.packed.lay` puts them. Kernels of up to 8 rows of NVFP4 stand in
`packed_few`, of one row of other formats in `packed_tables`; those of more rows here read tiles of
x and of the weight through shared memory, with columns of its own for each warp where x has few
rows.
"""

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.attention import shared_memory
from ember.backends.cuda.packed_codes import (
    HALF_REST,
    four_of,
    overall_of,
    planes_of,
    scale_of,
    scales_for,
    spread,
    store_products,
    twos_of,
    value_of,
    words_apart,
)
from ember.backends.cuda.packed_few import packed_row, packed_skinny
from ember.backends.cuda.packed_tables import packed_matvec
from ember.backends.cuda.products import FEW_ROWS, activated
from ember.model.packed import PackedMatrix, values_of

WORD = 8  # codes of 32 bits
LONG = 16  # codes of 64 bits


@triton.jit
def _flat(x):
    """A single slab without that dimension, so that a whole warp group multiplies its tile."""
    if x.shape[0] == 1:
        return tl.reshape(x, x.shape[1:])
    else:
        return x


@triton.jit
def _turned(x):
    if len(x.shape) == 2:
        return tl.trans(x)
    else:
        return tl.permute(x, (0, 2, 1))


@triton.jit
def _packed_wide(
    x_ptr,  # (M, K)
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / BLOCK)
    overall_ptr,  # (parts,)
    table_ptr,  # (16,)
    out_ptr,  # (M, N), or (SPLITS, M, N) float32 where SPLITS > 1
    bias_ptr,  # (N,), or (2 N,) where GATED
    M,
    N,
    FIRST,
    SECOND,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,  # words of a row at a time
    SLABS: tl.constexpr,  # of BW words, each with a warp of its own
    SPLITS: tl.constexpr,  # of the columns, each for other programs
    STAGES: tl.constexpr,  # tiles in flight
    BLOCK: tl.constexpr,
    TILED: tl.constexpr,  # how words lie
    FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    WORDS: tl.constexpr = K // 8
    BLOCKS: tl.constexpr = K // BLOCK
    GROUP: tl.constexpr = BLOCK // 8  # words that share a scale
    WIDE: tl.constexpr = SLABS * BW
    STEPS: tl.constexpr = (WORDS + WIDE - 1) // WIDE
    EACH: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    KIND: tl.constexpr = x_ptr.dtype.element_ty
    batch = tl.program_id(0) * BM + tl.arange(0, BM)
    # Of gate and up as many rows each, in one tile.
    TALL: tl.constexpr = BN // 2 if GATED else BN
    line = tl.arange(0, BN)
    rows = tl.program_id(1) * TALL + line % TALL
    split = tl.program_id(2)
    slabs = tl.arange(0, SLABS)[:, None, None]
    columns = slabs * BW + tl.arange(0, BW)[None, None, :]
    shared = slabs * (BW // GROUP) + tl.arange(0, BW // GROUP)[None, None, :]
    inside, present = (rows < N)[None, :, None], (batch < M)[None, :, None]
    part = rows + line // TALL * N
    line_of = part.to(tl.int64)[None, :, None]
    words = words_ptr + line_of * WORDS + words_apart(columns, TILED)
    if TILED:  # 16 words from a row to the next of 8
        words -= (line % 8)[None, :, None] * (WORDS - 16)
    scales = scales_ptr + line_of * BLOCKS + shared
    # Pairs of x in 32 bits where a pair of codes is: nothing is put in order.
    LONG_X: tl.constexpr = 4 if FAST else 8
    elements = slabs * (LONG_X * BW) + tl.arange(0, LONG_X * BW)[None, None, :]
    if FAST:
        x_ptr = x_ptr.to(tl.pointer_type(tl.int32))
    inputs = x_ptr + batch[None, :, None] * (LONG_X * WORDS) + elements
    if PDL:
        gdc_wait()
    table = ()
    if FAST and FORMAT != "nvfp4":
        for n in tl.static_range(8):
            copy = tl.load(table_ptr + 8 * (tl.arange(0, BW) & 1) + n)
            table = table + (_flat(copy[None, None, :]),)
    acc = _flat(tl.zeros((SLABS, BN, BM), tl.float32))
    begin = split * EACH
    for step in tl.range(begin, tl.minimum(begin + EACH, STEPS), num_stages=STAGES):
        left, held, within = inside, inside, present
        if WORDS % WIDE != 0:
            left = inside & (columns < WORDS - step * WIDE)
            held = inside & (shared < BLOCKS - step * (WIDE // GROUP))
            within = present & (elements < LONG_X * (WORDS - step * WIDE))
        x = _flat(tl.load(inputs + LONG_X * WIDE * step, mask=within, other=0))
        xs = _pairs_of_x(x, BW, FAST)
        if TILED and WIDE % 16 == 0:
            further = step * (8 * WIDE)
        else:
            further = words_apart(step * WIDE, TILED)
        some = _flat(tl.load(words + further, mask=left, other=0))
        raw = _flat(tl.load(scales + step * (WIDE // GROUP), mask=held, other=0))
        by = spread(scales_for(raw, FORMAT, FAST), GROUP)
        planes = planes_of(some, by, table, table_ptr, KIND, FORMAT, HIGH_FIRST, FAST)
        for p in tl.static_range(4):
            plane = tl.reshape(planes[p], some.shape[:-1] + (2 * BW,))
            acc = tl.dot(plane, _turned(xs[p]), acc, input_precision="ieee")
    if SLABS > 1:
        acc = tl.sum(acc, 0)
    if PDL:
        gdc_launch_dependents()
    factor = overall_of(overall_ptr, part, FIRST, SECOND, SCALED)
    if FAST:
        factor *= HALF_REST
    acc *= factor[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + part, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, TALL, BM)), (1, 2, 0)))
        acc = activated(gate, ACT) * up
        rows = tl.program_id(1) * TALL + tl.arange(0, TALL)
    else:
        acc = activated(acc, ACT)
    store_products(out_ptr, acc, rows, batch, split, M, N)


@triton.jit
def _pairs_of_x(x, BW: tl.constexpr, FAST: tl.constexpr):
    """Of x (…, 8 BW), where FAST in pairs (…, 4 BW): what each plane meets, (…, 2 BW)."""
    LINES: tl.constexpr = x.shape[:-1]
    if FAST:
        x = four_of(tl.reshape(x, LINES + (BW, 4)))
        xs = twos_of(x)
    else:
        x = tl.reshape(x, LINES + (BW, 4, 2))
        if len(LINES) == 1:
            xs = four_of(tl.permute(x, (0, 1, 3, 2)))
        else:
            xs = four_of(tl.permute(x, (0, 1, 2, 4, 3)))
    ALL: tl.constexpr = LINES + (2 * BW,)
    return (
        tl.reshape(xs[0], ALL), tl.reshape(xs[1], ALL),
        tl.reshape(xs[2], ALL), tl.reshape(xs[3], ALL),
    )  # fmt: skip


@triton.jit
def _unpack(
    words_ptr, scales_ptr, overall_ptr, table_ptr, out_ptr, N, FIRST, SECOND, FACTOR,
    K: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr, BLOCK: tl.constexpr, TILED: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out (N, K) = the weight, times FACTOR, rounded once."""
    # Of other formats than NVFP4 in bytes: words would take 4 % more of a prefill.
    EACH: tl.constexpr = 8 if FORMAT == "nvfp4" else 2
    WIDE: tl.constexpr = 8 * BW // EACH
    GROUP: tl.constexpr = BLOCK // EACH
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    shared = tl.program_id(1) * (WIDE // GROUP) + tl.arange(0, WIDE // GROUP)
    place, inside = rows.to(tl.int64)[:, None], (rows < N)[:, None]
    left, held = columns[None, :] < K // EACH, shared[None, :] < K // BLOCK
    if FORMAT != "nvfp4":
        words_ptr = words_ptr.to(tl.pointer_type(tl.uint8))
    words_ptr += place * (K // EACH) + words_apart(columns, TILED)[None, :]
    if TILED:  # 16 words from a row to the next of 8
        words_ptr -= (rows % 8)[:, None] * (K // 8 - 16)
    words = tl.load(words_ptr, mask=inside & left, other=0)
    at = place * (K // BLOCK) + shared[None, :]
    raw = tl.load(scales_ptr + at, mask=inside & held, other=0)
    scale = (
        scale_of(raw, FORMAT)
        * overall_of(overall_ptr, rows, FIRST, SECOND, SCALED)[:, None]
        * FACTOR
    )
    by = spread(scale, GROUP)
    if FORMAT == "nvfp4":
        planes = planes_of(words, by, (), table_ptr, tl.float32, FORMAT, HIGH_FIRST, False)
        first, second = tl.join(planes[0], planes[1]), tl.join(planes[2], planes[3])
        out = tl.permute(tl.join(first, second), (0, 1, 4, 3, 2))  # of p its two bits, c
    else:
        codes = words.to(tl.int32)
        low = value_of(codes & 15, table_ptr, FORMAT) * by
        high = value_of(codes >> 4, table_ptr, FORMAT) * by
        out = tl.join(high, low) if HIGH_FIRST else tl.join(low, high)
    out = tl.reshape(out, (BN, 8 * BW)).to(out_ptr.dtype.element_ty)
    at = 8 * tl.program_id(1) * BW + tl.arange(0, 8 * BW)
    tl.store(out_ptr + place * K + at[None, :], out, mask=inside & (at < K)[None, :])


@dataclass(frozen=True)
class Plan:
    """How a product of one row is cut: `rows` of the weight, `longs` of 16 codes at a time, `ahead`
    such tiles in flight."""

    rows: int
    longs: int
    ahead: int
    warps: int


@dataclass(frozen=True)
class RowPlan:
    """How NVFP4's product of one row is cut: tiles of `rows` of the weight, by `slabs` warps that
    share its columns, `ahead` steps in flight, `programs` at the most. `keep`: x stays in
    registers. `registers`: of a lane at the most, 0 for as many as it likes."""

    rows: int
    slabs: int
    ahead: int
    programs: int
    keep: bool
    registers: int = 0


@dataclass(frozen=True)
class Tiling:
    """How a product of more rows is cut: tiles of `rows` of the weight, `words` of 8 codes at a
    time for each of `slabs`, `ahead` in flight, for up to `batch` rows of x; `splits` programs
    share the columns. `programs`: that go through the rows while x stays in registers, for each
    share of the columns (`packed_skinny`), with so many `registers` a lane; 0: a program for each
    tile."""

    batch: int
    rows: int
    words: int
    ahead: int
    warps: int
    slabs: int = 1
    splits: int = 1
    programs: int = 0
    registers: int = 0


# By what is asked and the weight's rows, "slow" where numbers are not bfloat16. The fastest on an
# H200 at Qwen3-4B's shapes (tests/gpu/check_packed.py); summed: of o's time and down's together.
PLANS = {
    "gated": Plan(rows=2, longs=32, ahead=5, warps=1),
    "summed": Plan(rows=8, longs=128, ahead=5, warps=4),
    "plain": Plan(rows=8, longs=64, ahead=2, warps=2),
    "large": Plan(rows=8, longs=32, ahead=3, warps=1),
    "slow": Plan(rows=2, longs=128, ahead=1, warps=4),
}
TILES = {  # of up to 16 rows of x, and of more: rows of the weight, words, ahead, warps, slabs
    "gated": ((32, 16, 3, 2, 2), (64, 16, 3, 4, 1)),
    "summed": ((32, 16, 3, 2, 2), (64, 32, 2, 4, 1)),
    "long": ((32, 16, 3, 2, 2), (128, 16, 3, 8, 1)),
    "plain": ((32, 16, 3, 2, 2), (64, 32, 3, 4, 1)),
    "large": ((32, 16, 3, 2, 2), (128, 16, 3, 4, 1)),
}
NARROW, LARGE = 4096, 16384  # rows of a weight
LONG_ROWS = 8192  # columns
FROM_ROWS = 2  # from so many rows of x on tensor cores multiply all formats; 1: always
PROGRAMS = (528, 264)  # that share columns: four or two of a multiprocessor each
MULTIPROCESSORS = 132
# Of a lane, by the warps of a program: three, two and one fit on a multiprocessor. A row of 4,096
# columns spills with them, and a step at Qwen3-8B's shape takes 1,749 microseconds, not 1,978.
REGISTERS = {4: 168, 8: 128, 16: 128}
KEPT = 8  # steps whose columns of x stay in registers
SKINNY = Tiling(batch=8, rows=16, words=16, ahead=3, warps=4, slabs=4, programs=396, registers=168)
SHARE, MOST_SHARE = 5, 8  # steps, where columns are split, and where they cannot be
MOST_BATCH = 64  # rows of x of one program
MOST_ROWS = 128
# Of more than 16 rows of x. Fewer leave the device idle, and a dense weight is faster: of 64 rows o
# and down of Qwen3-4B take 18 and 37 microseconds then, not 29 and 72 (`lowbit_kernels`, one H200).
LEAST_PROGRAMS = 64


def plan_of(out: int, *, gated: bool, summed: bool) -> Plan:
    """How a product of one row is cut."""
    return PLANS[_kind_of(out, gated, summed or out < NARROW)]


def _resident(warps: int, registers: int) -> int:
    """Programs that the device holds at a time: more would take turns as wholes."""
    return MULTIPROCESSORS * (65536 // (32 * warps * registers))


def row_plan(out: int, columns: int, *, summed: bool) -> RowPlan:
    """How NVFP4's product of one row is cut; `out`: rows of the weight. Where the output adds to
    the residual stream its rows are few: a program each, with as much as it holds in flight."""
    slabs = 4
    while slabs < 16 and -(-columns // (LONG * WORD * slabs)) > KEPT:
        slabs *= 2
    steps = -(-columns // (LONG * WORD * slabs))
    tiles = -(-out // 16)
    if not summed:
        registers = REGISTERS[slabs]
        programs = min(tiles, _resident(slabs, registers))
        return RowPlan(16, slabs, 5, programs, keep=steps <= KEPT, registers=registers)
    if slabs == 4:
        return RowPlan(16, slabs, 8, tiles, keep=True)
    return RowPlan(16, 8, 6, tiles, keep=False, registers=128)


def tiling_of(
    rows: int,
    out: int,
    columns: int,
    *,
    gated: bool,
    summed: bool,
    size: int = 2,
    shared: int = 232448,
) -> Tiling | None:
    """How a product of more rows is cut; `summed`: someone adds up split columns; `size`: bytes of
    a number of x, `shared`: of a program's memory. None: so many that the weight is better written
    dense."""
    if rows > MOST_ROWS:
        return None
    batch = min(MOST_BATCH, max(8, triton.next_power_of_2(rows)))
    many = batch > 16
    kind = "long" if summed and columns >= LONG_ROWS else _kind_of(out, gated, summed)
    tall, words, ahead, warps, slabs = TILES[kind][many]
    word = slabs * (WORD * batch * size + tall * 5)  # its bytes in a tile
    while words > 8 and (ahead + 1) * words * word > shared:
        words //= 2
    programs = -(-out // tall) * -(-rows // batch)
    steps = -(-columns // (WORD * words * slabs))
    splits = min(steps, max(1, PROGRAMS[many] // programs)) if summed else 1
    return Tiling(batch, tall, words, ahead, warps, slabs, splits)


def skinny_tiling(weight: PackedMatrix | Tensor, *, summed: bool) -> Tiling | None:
    """How a product of up to 8 rows is cut where x stays in registers. None: of another format, or
    its columns are too many for them."""
    out, columns = weight.shape
    if getattr(weight, "format", None) != "nvfp4":
        return None
    tiles = -(-out // SKINNY.rows)
    for slabs in (SKINNY.slabs, 2 * SKINNY.slabs):
        steps = -(-columns // (WORD * SKINNY.words * slabs))
        splits = -(-steps // SHARE) if summed else 1
        if steps <= MOST_SHARE * splits:
            programs = min(tiles, _resident(slabs, SKINNY.registers) // splits)
            if summed:  # as few as take no more turns
                programs = -(-tiles // -(-tiles // programs))
            # Where little else stands in registers, a whole tile does.
            whole = steps <= SHARE * splits and (summed or programs == tiles)
            ahead = SHARE if whole else SKINNY.ahead
            cut = {"ahead": ahead, "warps": slabs, "slabs": slabs, "splits": splits}
            return replace(SKINNY, programs=programs, **cut)
    return None


def x_stays(layer) -> bool:
    """Whether `skinny_tiling` has a cut for all products of a layer."""
    summed, other = (layer.o, layer.down), (layer.qkv, layer.gate_up)
    tilings = [skinny_tiling(weight, summed=True) for weight in summed]
    return None not in [*tilings, *(skinny_tiling(weight, summed=False) for weight in other)]


def _kind_of(out: int, gated: bool, summed: bool) -> str:
    plain = "large" if out >= LARGE else "plain"
    return "gated" if gated else "summed" if summed else plain


def most_sums(rows: int, layer, **memory: int) -> int:
    """Sums of split columns that a layer's products of up to `rows` rows leave, a row's each;
    `memory`: `size` and `shared` of `tiling_of`."""
    added, kind = (layer.o, layer.down), {"gated": False, "summed": True}
    some = [
        (few, tiling_of(few, *weight.shape, **kind, **memory))
        for few in {min(rows, MOST_BATCH), rows}
        for weight in added
    ]
    some += [(min(rows, FEW_ROWS), skinny_tiling(weight, summed=True)) for weight in added]
    return max(few * tiling.splits for few, tiling in some if tiling is not None)


def matvec(
    x: Tensor,
    weight: PackedMatrix,
    out: Tensor,
    *,
    plan: Plan | RowPlan | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    act: str = "",
    summed: bool = False,
    pdl: bool = False,
) -> Tensor:
    """out (1, N) = x (1, K) · weightᵀ; see `products.matvec`."""
    n, k = out.shape[1], weight.shape[1]
    kinds = {x.dtype, x.dtype if norm is None else norm.dtype}
    least = (8, 0) if weight.format == "nvfp4" else (8, 6)
    fast = _fast(x, least) and kinds == {torch.bfloat16}
    inputs = (x if norm is None else norm, out if residual is None else residual)
    inputs += (x if bias is None else bias, n, *_ends(weight), eps)
    options = {
        "FAST": fast,
        "NORM": norm is not None,
        "GATED": gated,
        "ACT": act,
        "RESIDUAL": residual is not None,
        "BIAS": bias is not None,
        "PDL": pdl,
        **({"launch_pdl": True} if pdl else {}),
    }
    if weight.format == "nvfp4":
        plan = plan or row_plan(len(weight), k, summed=summed)
        tall = plan.rows // (1 + gated)
        tiles = triton.cdiv(n, tall)
        packed_row[(min(tiles, plan.programs),)](
            *(x, *_operands(weight)[:3], out, *inputs),
            K=k,
            BN=plan.rows,
            SLABS=plan.slabs,
            AHEAD=plan.ahead,
            KEEP=plan.keep,
            ONCE=plan.programs >= tiles,
            TILED=weight.order == "tiles",
            SCALED=weight.overall is not None,
            **options,
            num_warps=plan.slabs,
            num_stages=1,
            **_bounded(plan.registers),
        )
        return out
    codes, *others = _operands(weight, torch.float16 if fast else None)
    if plan is None:
        plan = plan_of(n, gated=gated, summed=summed) if fast else PLANS["slow"]
    packed_matvec[(triton.cdiv(n, plan.rows),)](
        *(x, codes.view(torch.int64), *others, out, *inputs),
        K=k,
        BN=plan.rows,
        BW=min(plan.longs, triton.next_power_of_2(k // LONG)),
        AHEAD=plan.ahead,
        **_kind(weight),
        **options,
        num_warps=plan.warps,
        num_stages=1,
    )
    return out


def wide(
    x: Tensor,
    weight: PackedMatrix,
    out: Tensor,
    *,
    tiling: Tiling,
    bias: Tensor | None = None,
    gated: bool = False,
    act: str = "",
    pdl: bool = False,
) -> Tensor:
    """out (M, N) = x (M, K) · weightᵀ; where columns are split, out (splits, M, N) in float32 are
    their sums; see `products.wide`."""
    if tiling.splits > 1 and (gated or bias is not None or out.dtype != torch.float32):
        raise ValueError("sums of split columns are in float32, without gate and bias")
    (m, k), n = x.shape, len(weight) // (1 + gated)
    fast = _fast(x) and x.dtype == torch.bfloat16 and weight.format in ("nvfp4", "nf4")
    operands = (x, *_operands(weight, x.dtype if fast else None), out)
    operands += (x if bias is None else bias, m, n, *_ends(weight))
    options = {
        "FAST": fast,
        "GATED": gated,
        "ACT": act,
        "BIAS": bias is not None,
        "PDL": pdl,
        **({"launch_pdl": True} if pdl else {}),
    }
    if tiling.programs:
        if m > FEW_ROWS or weight.format != "nvfp4":
            raise ValueError("up to 8 rows of x stay in registers, of NVFP4")
        packed_skinny[(tiling.programs, tiling.splits)](
            *operands,
            K=k,
            BN=tiling.rows,
            SLABS=tiling.slabs,
            SPLITS=tiling.splits,
            AHEAD=tiling.ahead,
            ONCE=tiling.programs * (tiling.rows // (1 + gated)) >= n,
            TILED=weight.order == "tiles",
            SCALED=weight.overall is not None,
            **options,
            num_warps=tiling.warps,
            num_stages=1,
            **_bounded(tiling.registers),
        )
        return out
    tall = triton.cdiv(len(weight), tiling.rows)
    _packed_wide[(triton.cdiv(m, tiling.batch), tall, tiling.splits)](
        *operands,
        K=k,
        BM=tiling.batch,
        BN=tiling.rows,
        BW=max(tiling.words, weight.block // WORD),
        SLABS=tiling.slabs,
        SPLITS=tiling.splits,
        STAGES=tiling.ahead,
        TILED=weight.order == "tiles",
        **_kind(weight),
        **options,
        num_warps=tiling.warps,
    )
    return out


def product(x: Tensor, weight: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """(M, N) = x (M, K) · weightᵀ (+ bias): few rows with codes decoded in registers, more by the
    library with a dense weight."""
    if len(x) > MOST_BATCH:
        return F.linear(x, dense(weight, x.dtype), bias)
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    if len(x) < FROM_ROWS:
        return matvec(x, weight, out, bias=bias)
    if len(x) <= FEW_ROWS and x.dtype == torch.bfloat16:
        whole = skinny_tiling(weight, summed=False)
        if whole is not None:
            return wide(x.contiguous(), weight, out, tiling=whole, bias=bias)
        if (shared := skinny_tiling(weight, summed=True)) is not None:
            parts = torch.empty(shared.splits, *out.shape, device=x.device)
            total = wide(x.contiguous(), weight, parts, tiling=shared).sum(0)
            return (total if bias is None else total + bias).to(x.dtype)
    memory = {"size": x.itemsize, "shared": shared_memory(x.device)}
    tiling = tiling_of(len(x), *weight.shape, gated=False, summed=False, **memory)
    if tiling.batch > 16 and triton.cdiv(len(weight), tiling.rows) < LEAST_PROGRAMS:
        return F.linear(x, dense(weight, x.dtype), bias)
    return wide(x.contiguous(), weight, out, tiling=tiling, bias=bias)


def dense(weight: PackedMatrix, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """The weight (N, K), times `factor`, rounded once; on the device."""
    (n, k), rows, words = weight.shape, 16, 32
    out = torch.empty(n, k, dtype=dtype, device=weight.codes.device)
    _unpack[(triton.cdiv(n, rows), triton.cdiv(k // WORD, words))](
        *(*_operands(weight), out, n, *_ends(weight), factor),
        K=k,
        BN=rows,
        BW=words,
        TILED=weight.order == "tiles",
        **_kind(weight),
        num_warps=4,
    )
    return out


def _fast(x: Tensor, least: tuple[int, int] = (8, 0)) -> bool:
    """Whether the device has the instructions that decode, by its compute capability."""
    return x.is_cuda and _capability(x.device) >= least


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _bounded(registers: int) -> dict:
    return {"maxnreg": registers} if registers else {}


def _operands(weight: PackedMatrix, half: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Words of codes, scales, what they are multiplied by, and a table: the values in float32, or
    where they are looked up in `half` as `_words`. Raises ValueError for NVFP4 whose codes lie as a
    file has them."""
    if weight.format == "nvfp4" and weight.order == "file":
        raise ValueError("NVFP4's codes are not laid for these kernels: PackedMatrix.lay does it")
    of = weight.format, weight.codes.device
    table = _table(*of) if half is None or weight.format == "nvfp4" else _words(*of, half)
    overall = table if weight.overall is None else weight.overall
    return weight.codes.view(torch.int32), weight.scales, overall, table


def _ends(weight: PackedMatrix) -> tuple[int, int]:
    return (*weight.ends, len(weight), len(weight))[:2]


def _kind(weight: PackedMatrix) -> dict:
    return {
        "BLOCK": weight.block,
        "FORMAT": weight.format,
        "HIGH_FIRST": weight.high_first,
        "SCALED": weight.overall is not None,
    }


@functools.cache
def _table(format: str, device: torch.device) -> Tensor:
    return values_of(format).to(device)


@functools.cache
def _words(format: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2, 8) int32, twice the same: of the 16 values in a half format, as much too small as
    `COLUMNS` and `HALF_REST` make up for, the upper bytes in four words, then the lower ones."""
    rest = 2**6 if dtype == torch.float16 else HALF_REST.value
    halves = (values_of(format) / rest).to(dtype)
    words = halves.view(torch.uint8).view(16, 2).flip(1).T.contiguous().view(torch.int32)
    return words.flatten().repeat(2, 1).to(device)
