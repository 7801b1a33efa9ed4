"""Products with 4-bit weights: codes and scales become numbers in registers (W4A16).

Contract. What `products` computes with dense weights, for a `PackedMatrix`: `matvec` one row of x
by multiply-adds, `wide` more by tensor cores; `dense` writes the weight itself, for the library's
products of many rows. Sums are float32; an overall scale is applied to them, before anything is
rounded to a half format.

E2M1's bits, shifted into a float's exponent and mantissa, are 2**126 too small, and so are
bfloat16's; in E4M3 it is 2**120. They are multiplied with what is as much too large before they
meet x, or small numbers would drown among the denormals.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.products import activated
from ember.model.packed import PackedMatrix, values_of

WORD = 8  # codes of 32 bits
SIGN_AND_VALUE = tl.constexpr(
    -2118123520
)  # 0x81C00000: sign, two bits of exponent, one of mantissa
LARGE = tl.constexpr(2.0**64)  # of x, against E2M1's 2**-126
REST = tl.constexpr(2.0**62)
E4M3 = tl.constexpr(2.0**120)
HALF_REST = tl.constexpr(2.0**7)  # of codes times scales in bfloat16, see DECODE
# Four bytes of codes ($4) times their scales ($5, E4M3 each), as bfloat16 2**7 too small: two
# registers of low nibbles, two of high ones. The four need not be neighbours of one row: the
# compiler may give them out as a matrix product reads its operand, so each has its own scale. A
# byte stands twice in 16 bits, so that each nibble's sign and value need one shift and one mask. A
# scale is brought to 2**119 of itself in two steps: no constant is that large.
DECODE = tl.constexpr("""
{
.reg .b32 a, b, t, s, r, z;
mov.b32 z, 0x80008000;
prmt.b32 s, $5, 0, 0x4140;
prmt.b32 r, $5, 0, 0x4342;
shl.b32 s, s, 4;
shl.b32 r, r, 4;
mov.b32 t, 0x7F007F00;
fma.rn.bf16x2 s, s, t, z;
fma.rn.bf16x2 r, r, t, z;
mov.b32 t, 0x77807780;
fma.rn.bf16x2 s, s, t, z;
fma.rn.bf16x2 r, r, t, z;
prmt.b32 a, $4, $4, 0x1100;
prmt.b32 b, $4, $4, 0x3322;
shr.b32 t, a, 2;
and.b32 t, t, 0x01C001C0;
shl.b32 $0, a, 4;
lop3.b32 $0, $0, 0x80008000, t, 0xEA;
fma.rn.bf16x2 $0, $0, s, z;
shr.b32 t, b, 2;
and.b32 t, t, 0x01C001C0;
shl.b32 $1, b, 4;
lop3.b32 $1, $1, 0x80008000, t, 0xEA;
fma.rn.bf16x2 $1, $1, r, z;
shr.b32 t, a, 6;
and.b32 t, t, 0x01C001C0;
lop3.b32 $2, a, 0x80008000, t, 0xEA;
fma.rn.bf16x2 $2, $2, s, z;
shr.b32 t, b, 6;
and.b32 t, t, 0x01C001C0;
lop3.b32 $3, b, 0x80008000, t, 0xEA;
fma.rn.bf16x2 $3, $3, r, z;
}
""")


@triton.jit
def _scale(raw, FORMAT: tl.constexpr):
    """A block's scale in float32, of the bits of E4M3 (never negative) or as it is."""
    if FORMAT == "nvfp4":
        return (raw.to(tl.int32) << 20).to(tl.float32, bitcast=True) * E4M3
    else:
        return raw


@triton.jit
def _value(code, table_ptr, FORMAT: tl.constexpr):
    """float32 of codes 0 … 15 in int32."""
    if FORMAT == "nvfp4":
        bits = ((code & 7) << 22) | ((code & 8) << 28)
        return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2**126
    elif FORMAT == "int4":
        return (code - 8).to(tl.float32)
    else:
        return tl.load(table_ptr + code)


@triton.jit
def _overall(overall_ptr, rows, FIRST, SECOND, SCALED: tl.constexpr):
    """Of each row's part."""
    factor = tl.full(rows.shape, 1.0, tl.float32)
    if SCALED:
        part = (rows >= FIRST).to(tl.int32) + (rows >= SECOND).to(tl.int32)
        factor = tl.load(overall_ptr + part)
    return factor


@triton.jit
def _read_once(pointers, mask):
    """Weights: what is read once should not push out what is read again."""
    return tl.load(pointers, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def _nibble(words, PLACE: tl.constexpr, table_ptr, FORMAT: tl.constexpr):
    """Values of one of the eight codes of each word; E2M1's 2**126 too small."""
    if FORMAT == "nvfp4":
        bits = ((words << (28 - 4 * PLACE)) >> 6) & SIGN_AND_VALUE
        return bits.to(tl.float32, bitcast=True)
    else:
        return _value((words >> (4 * PLACE)) & 15, table_ptr, FORMAT)


@triton.jit
def _word_dots(
    words, scales, x_ptr, norm_ptr, columns, step, table_ptr,
    K: tl.constexpr, BW: tl.constexpr, NORM: tl.constexpr, FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr, more, more_scales, GATED: tl.constexpr,
):  # fmt: skip
    """Of words (BN, BW), times their scales: dot products with x by word, of `more` too; and the
    sums of x's squares by column."""
    dots = tl.zeros(words.shape, tl.float32)
    more_dots = tl.zeros(words.shape, tl.float32)
    squares = tl.zeros((BW,), tl.float32)
    at = (step * BW + columns) * 8
    inside = at < K
    for j in tl.static_range(8):
        x = tl.load(x_ptr + at + j, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_ptr + at + j, mask=inside, other=0.0).to(tl.float32)
        if FORMAT == "nvfp4":
            x *= LARGE
        if HIGH_FIRST:
            dots += _nibble(words, j ^ 1, table_ptr, FORMAT) * x[None, :]
        else:
            dots += _nibble(words, j, table_ptr, FORMAT) * x[None, :]
        if GATED and HIGH_FIRST:
            more_dots += _nibble(more, j ^ 1, table_ptr, FORMAT) * x[None, :]
        elif GATED:
            more_dots += _nibble(more, j, table_ptr, FORMAT) * x[None, :]
    dots *= _scale(scales, FORMAT)
    if GATED:
        more_dots *= _scale(more_scales, FORMAT)
    return dots, more_dots, squares


@triton.jit
def _packed_matvec(
    x_ptr,  # (1, K)
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / BLOCK)
    overall_ptr,  # (parts,)
    table_ptr,  # (16,)
    out_ptr,  # (1, N)
    norm_ptr,  # (K,)
    residual_ptr,  # (1, N)
    bias_ptr,  # (N,), or (2 N,) where GATED
    N,
    FIRST,  # the row at which the first part ends
    SECOND,
    eps,
    K: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,  # words of a tile
    AHEAD: tl.constexpr,  # tiles of the weight in flight
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    SCALED: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    WORDS: tl.constexpr = K // 8
    BLOCKS: tl.constexpr = K // BLOCK
    STEPS: tl.constexpr = (WORDS + BW - 1) // BW
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    columns = tl.arange(0, BW)
    there = (rows < N)[:, None]
    place = rows.to(tl.int64)[:, None]
    words, ups = words_ptr + place * WORDS, words_ptr + (place + N) * WORDS
    scales, up_scales = scales_ptr + place * BLOCKS, scales_ptr + (place + N) * BLOCKS
    tiles = ()
    for step in tl.static_range(EARLY):
        at = step * BW + columns[None, :]
        mask = there & (at < WORDS)
        tiles = tiles + (_read_once(words + at, mask), _read_once(scales + at * 8 // BLOCK, mask))
        if GATED:
            tiles = tiles + (
                _read_once(ups + at, mask),
                _read_once(up_scales + at * 8 // BLOCK, mask),
            )
    if PDL:
        gdc_wait()
    acc = tl.zeros((BN, BW), tl.float32)
    up_acc = tl.zeros((BN, BW), tl.float32)
    squares = tl.zeros((BW,), tl.float32)
    for step in tl.static_range(STEPS):
        dots, more, some = _word_dots(
            tiles[0], tiles[1], x_ptr, norm_ptr, columns, step, table_ptr,
            K, BW, NORM, FORMAT, HIGH_FIRST,
            tiles[2] if GATED else tiles[0], tiles[3] if GATED else tiles[1], GATED,
        )  # fmt: skip
        acc += dots
        squares += some
        if GATED:
            up_acc += more
            tiles = tiles[4:]
        else:
            tiles = tiles[2:]
        if step + AHEAD < STEPS:
            at = (step + AHEAD) * BW + columns[None, :]
            mask = there & (at < WORDS)
            tiles = tiles + (
                _read_once(words + at, mask),
                _read_once(scales + at * 8 // BLOCK, mask),
            )
            if GATED:
                tiles = tiles + (
                    _read_once(ups + at, mask),
                    _read_once(up_scales + at * 8 // BLOCK, mask),
                )
    factor = tl.full((), 1.0, tl.float32)
    if FORMAT == "nvfp4":
        factor *= REST
    if NORM:
        factor *= tl.rsqrt(tl.sum(squares, 0) / K + eps)
    out = tl.sum(acc, 1) * factor * _overall(overall_ptr, rows, FIRST, SECOND, SCALED)
    up = tl.sum(up_acc, 1) * factor * _overall(overall_ptr, rows + N, FIRST, SECOND, SCALED)
    there = rows < N
    if BIAS:
        out += tl.load(bias_ptr + rows, mask=there, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias_ptr + N + rows, mask=there, other=0.0).to(tl.float32)
    out = activated(out, ACT)
    if GATED:
        out *= up
    if RESIDUAL:
        out += tl.load(residual_ptr + rows, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _decoded(
    codes, raw, table_ptr, KIND: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
    GROUP: tl.constexpr, FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The first and the second weight of each byte (BN, BYTES), in the type KIND; where FAST
    bfloat16, 2**7 too small. `raw`: scales (BN, BYTES / GROUP)."""
    scale = raw if FAST else _scale(raw, FORMAT)
    wide = tl.broadcast_to(scale[:, :, None], (BN, BYTES // GROUP, GROUP))
    wide = tl.reshape(wide, (BN, BYTES))
    if FAST:
        return tl.inline_asm_elementwise(
            DECODE,
            "=&r,=&r,=&r,=&r,r,r",
            [codes, wide],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        c = codes.to(tl.int32)
        low = (_value(c & 15, table_ptr, FORMAT) * wide).to(KIND)
        high = (_value(c >> 4, table_ptr, FORMAT) * wide).to(KIND)
        if HIGH_FIRST:
            return high, low
        else:
            return low, high


@triton.jit
def _packed_wide(
    x_ptr,  # (M, K)
    codes_ptr,  # (N, K / 2) uint8, or (2 N, K / 2) where GATED
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
    BYTES: tl.constexpr,  # of codes of a row at a time
    SPLITS: tl.constexpr,  # of the columns, each for other programs
    STAGES: tl.constexpr,  # tiles in flight
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    HALF: tl.constexpr = K // 2
    BLOCKS: tl.constexpr = K // BLOCK
    GROUP: tl.constexpr = BLOCK // 2  # bytes that share a scale
    STEPS: tl.constexpr = (HALF + BYTES - 1) // BYTES
    EACH: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    KIND: tl.constexpr = x_ptr.dtype.element_ty
    batch = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    columns = tl.arange(0, BYTES)[None, :]
    shared = tl.arange(0, BYTES // GROUP)[None, :]
    inside, present = (rows < N)[:, None], (batch < M)[:, None]
    place = rows.to(tl.int64)[:, None]
    codes, ups = codes_ptr + place * HALF + columns, codes_ptr + (place + N) * HALF + columns
    scales = scales_ptr + place * BLOCKS + shared
    up_scales = scales_ptr + (place + N) * BLOCKS + shared
    pairs = tl.arange(0, 2 * BYTES)[None, :]
    inputs = x_ptr + batch[:, None] * K + pairs
    if PDL:
        gdc_wait()
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    begin = split * EACH
    for step in tl.range(begin, tl.minimum(begin + EACH, STEPS), num_stages=STAGES):
        left = columns < HALF - step * BYTES
        held = shared < BLOCKS - step * (BYTES // GROUP)
        within = present & (pairs < K - 2 * step * BYTES)
        x = tl.load(inputs + 2 * step * BYTES, mask=within, other=0.0)
        first, second = tl.split(tl.reshape(x, (BM, BYTES, 2)))
        some = _read_once(codes + step * BYTES, inside & left)
        raw = _read_once(scales + step * (BYTES // GROUP), inside & held)
        w, v = _decoded(some, raw, table_ptr, KIND, BN, BYTES, GROUP, FORMAT, HIGH_FIRST, FAST)
        acc = tl.dot(w, tl.trans(first), acc, input_precision="ieee")
        acc = tl.dot(v, tl.trans(second), acc, input_precision="ieee")
        if GATED:
            some = _read_once(ups + step * BYTES, inside & left)
            raw = _read_once(up_scales + step * (BYTES // GROUP), inside & held)
            w, v = _decoded(some, raw, table_ptr, KIND, BN, BYTES, GROUP, FORMAT, HIGH_FIRST, FAST)
            up = tl.dot(w, tl.trans(first), up, input_precision="ieee")
            up = tl.dot(v, tl.trans(second), up, input_precision="ieee")
    if PDL:
        gdc_launch_dependents()
    factor = _overall(overall_ptr, rows, FIRST, SECOND, SCALED)
    more = _overall(overall_ptr, rows + N, FIRST, SECOND, SCALED and GATED)
    if FAST:
        factor *= HALF_REST
        more *= HALF_REST
    acc *= factor[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    acc = activated(acc, ACT)
    if GATED:
        up *= more[:, None]
        if BIAS:
            offset = tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0)
            up += offset.to(tl.float32)[:, None]
        acc *= up
    spots = (split * M + batch).to(tl.int64)[None, :] * N + rows[:, None]
    there = (batch < M)[None, :] & (rows < N)[:, None]
    tl.store(out_ptr + spots, acc.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _unpack(
    codes_ptr, scales_ptr, overall_ptr, table_ptr, out_ptr, N, FIRST, SECOND, FACTOR,
    K: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out (N, K) = the weight, times FACTOR, rounded once."""
    GROUP: tl.constexpr = BLOCK // 2
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    columns = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    shared = tl.program_id(1) * (BYTES // GROUP) + tl.arange(0, BYTES // GROUP)
    place, inside = rows.to(tl.int64)[:, None], (rows < N)[:, None]
    left, held = columns[None, :] < K // 2, shared[None, :] < K // BLOCK
    codes = tl.load(codes_ptr + place * (K // 2) + columns[None, :], mask=inside & left, other=0)
    raw = tl.load(scales_ptr + place * (K // BLOCK) + shared[None, :], mask=inside & held, other=0)
    scale = (
        _scale(raw, FORMAT) * _overall(overall_ptr, rows, FIRST, SECOND, SCALED)[:, None] * FACTOR
    )
    wide = tl.broadcast_to(scale[:, :, None], (BN, BYTES // GROUP, GROUP))
    wide = tl.reshape(wide, (BN, BYTES))
    c = codes.to(tl.int32)
    low = _value(c & 15, table_ptr, FORMAT) * wide
    high = _value(c >> 4, table_ptr, FORMAT) * wide
    both = tl.interleave(high, low) if HIGH_FIRST else tl.interleave(low, high)
    at = 2 * tl.program_id(1) * BYTES + tl.arange(0, 2 * BYTES)
    out = both.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place * K + at[None, :], out, mask=inside & (at < K)[None, :])


@dataclass(frozen=True)
class Plan:
    """How a product of one row is cut; `ahead` tiles are in flight."""

    rows: int  # BN
    words: int  # BW
    ahead: int
    warps: int


@dataclass(frozen=True)
class Tiling:
    """How a product of more rows is cut: tiles of `rows` of the weight, `bytes` of codes at a time,
    `ahead` in flight, for up to `batch` rows of x; `splits` programs share the columns."""

    batch: int
    rows: int
    bytes: int
    ahead: int
    warps: int
    splits: int = 1


# By what is asked: to be tuned on the device (tests/gpu/check_packed.py times them).
PLANS = {
    "gated": Plan(rows=4, words=128, ahead=3, warps=4),
    "summed": Plan(rows=8, words=128, ahead=4, warps=4),
    "plain": Plan(rows=8, words=128, ahead=4, warps=4),
}
TILES = {"gated": (64, 64, 3, 4), "summed": (64, 64, 4, 4), "plain": (64, 64, 4, 4)}
FROM_ROWS = 2  # from so many rows of x on tensor cores multiply; 1: always
PROGRAMS = 132  # that keep the device busy: a multiprocessor each
MOST_BATCH = 64  # rows of x of one program
MOST_ROWS = 128


def plan_of(*, gated: bool, summed: bool) -> Plan:
    """How a product of one row is cut."""
    return PLANS["gated" if gated else "summed" if summed else "plain"]


def tiling_of(rows: int, out: int, columns: int, *, gated: bool, summed: bool) -> Tiling | None:
    """How a product of more rows is cut; `summed`: someone adds up split columns. None: so many
    that the weight is better written dense."""
    if rows > MOST_ROWS:
        return None
    tall, size, ahead, warps = TILES["gated" if gated else "summed" if summed else "plain"]
    batch = min(MOST_BATCH, max(16, triton.next_power_of_2(rows)))
    programs = -(-out // tall) * -(-rows // batch)
    splits = min(-(-columns // (2 * size)), max(1, PROGRAMS // programs)) if summed else 1
    return Tiling(batch, tall, size, ahead, warps, splits)


def most_sums(rows: int, layer) -> int:
    """Sums of split columns that a layer's products of up to `rows` rows leave, a row's each."""
    shapes = [weight.shape for weight in (layer.o, layer.down)]
    return max(
        some * tiling_of(some, *shape, gated=False, summed=True).splits
        for some in {min(rows, MOST_BATCH), rows}
        for shape in shapes
    )


def matvec(
    x: Tensor,
    weight: PackedMatrix,
    out: Tensor,
    *,
    plan: Plan | None = None,
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
    plan = plan or plan_of(gated=gated, summed=summed)
    n, k = out.shape[1], weight.shape[1]
    codes, *others = _operands(weight)
    words = min(plan.words, triton.next_power_of_2(k // WORD))
    _packed_matvec[(triton.cdiv(n, plan.rows),)](
        *(x, codes.view(torch.int32), *others, out),
        *(x if norm is None else norm, out if residual is None else residual),
        *(x if bias is None else bias, n, *_ends(weight), eps),
        K=k,
        BN=plan.rows,
        BW=words,
        AHEAD=plan.ahead,
        **_kind(weight),
        NORM=norm is not None,
        GATED=gated,
        ACT=act,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        PDL=pdl,
        num_warps=plan.warps,
        **({"launch_pdl": True} if pdl else {}),
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
    (m, n), k = out.shape[-2:], weight.shape[1]
    group = weight.block // 2
    size = max(group, 16, min(tiling.bytes, triton.next_power_of_2(k // 2)))
    _packed_wide[(triton.cdiv(m, tiling.batch), triton.cdiv(n, tiling.rows), tiling.splits)](
        *(x, *_operands(weight), out, x if bias is None else bias, m, n, *_ends(weight)),
        K=k,
        BM=tiling.batch,
        BN=tiling.rows,
        BYTES=size,
        SPLITS=tiling.splits,
        STAGES=tiling.ahead,
        **_kind(weight),
        FAST=x.is_cuda and weight.format == "nvfp4" and x.dtype == torch.bfloat16,
        GATED=gated,
        ACT=act,
        BIAS=bias is not None,
        PDL=pdl,
        num_warps=tiling.warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


def product(x: Tensor, weight: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """(M, N) = x (M, K) · weightᵀ (+ bias): few rows with codes decoded in registers, more by the
    library with a dense weight."""
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    if len(x) < FROM_ROWS:
        return matvec(x, weight, out, bias=bias)
    tiling = tiling_of(len(x), *weight.shape, gated=False, summed=False)
    if tiling is None:
        return F.linear(x, dense(weight, x.dtype), bias)
    return wide(x.contiguous(), weight, out, tiling=tiling, bias=bias)


def dense(weight: PackedMatrix, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
    """The weight (N, K), times `factor`, rounded once; on the device."""
    (n, k), rows, size = weight.shape, 16, 128
    out = torch.empty(n, k, dtype=dtype, device=weight.codes.device)
    _unpack[(triton.cdiv(n, rows), triton.cdiv(k // 2, size))](
        *(*_operands(weight), out, n, *_ends(weight), factor),
        K=k,
        BN=rows,
        BYTES=size,
        **_kind(weight),
        num_warps=4,
    )
    return out


def _operands(weight: PackedMatrix) -> tuple[Tensor, ...]:
    table = _table(weight.format, weight.codes.device)
    return weight.codes, weight.scales, table if weight.overall is None else weight.overall, table


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
