"""Products with 4-bit weights: codes and scales become numbers in registers (W4A16).

Contract. What `products` computes with dense weights, for a `PackedMatrix`: `matvec` one row of x,
`wide` more; `dense` writes the weight itself, for the library's products of many rows. Sums are
float32; an overall scale is applied to them, before anything is rounded to a half format. NVFP4's
codes have to lie as `ember.model.packed.lay` puts them.

What decides the speed of NVFP4 is instructions per weight, logic and conversions most of all, for
these run at half the rate of the others. So the bits of a word's eight codes lie so that a shift
and a mask, of one also an exclusive or, make two neighbours bfloat16 (`PAIRS`), which meet two
neighbours of x as they are: nothing is put in order, and tensor cores multiply also for one row.
There each block of 16 has a column of its own, and its scale multiplies the sum (`_packed_row`: 1.8
instructions a weight, 4 to 5 with multiply-adds in pairs); of more rows it multiplies the codes.
Weights of up to 8 rows are read into the registers from which tensor cores take them and are on
their way before x is there; x stays in registers while programs go through rows of the weight.

NF4's values follow no formula: they are picked byte by byte, four at a time, from a table in
registers, at about 6 instructions a weight. INT4's are picked so in `matvec`, which multiplies and
adds pairs of them in float16.

E2M1's bits, as exponent and mantissa of a wider float, are too small: 2**126 in bfloat16 and
float32; in E4M3 it is 2**120. What they meet is as much too large before (a scale, or x), or small
numbers would drown among the denormals.
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
from ember.backends.cuda.products import FEW_ROWS, activated
from ember.model.packed import PackedMatrix, values_of

WORD = 8  # codes of 32 bits
LONG = 16  # codes of 64 bits
E4M3 = tl.constexpr(2.0**120)
E2M1 = tl.constexpr(2.0**126)
HALF_REST = tl.constexpr(2.0**7)  # of codes times scales in bfloat16, see PAIRS


def _picked(word: str, tables: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """What picks bytes of a word's codes 0 … 3, and then of 4 … 7, by name from tables of 16: from
    the half of each in which a code is."""
    text = "prmt.b32 m, 0x8000, 0, t;"  # 255 where a code is 8 or more
    for name, (a, b, c, d) in tables.items():
        text += f"prmt.b32 {name}, ${a}, ${b}, s; prmt.b32 r, ${c}, ${d}, s;"
        text += f"lop3.b32 {name}, m, r, {name}, 0xCA;"
    first = f"shr.b32 t, {word}, 3; lop3.b32 t, t, 0x11111111, 0x88888888, 0xEA;"
    first += f"and.b32 s, {word}, 0x77777777;"
    return first + text, "shr.b32 t, t, 16; shr.b32 s, s, 16;" + text


def _looked_up(high_first: bool) -> str:
    """Those of another format, upper and lower bytes from a table in $10 … $17 (see `_words`)."""
    even, odd = (1, 0) if high_first else (0, 1)
    text = ""
    for n, four in enumerate(_picked("w", {"u": (10, 11, 12, 13), "k": (14, 15, 16, 17)})):
        text += f"{four} prmt.b32 a{2 * n + even}, k, u, 0x6240;"
        text += f"prmt.b32 a{2 * n + odd}, k, u, 0x7351;"
    return text


def _dot_of(halves: str) -> str:
    """Sixteen codes ($1) times the pairs of x at their places ($2 … $9), summed ($0)."""
    text = "{.reg .b32 w, v, t, u, s, m, r, k, a0, a1, a2, a3, p; .reg .b16 l, h; .reg .f32 f, g;"
    text += f"mov.b64 {{w, v}}, $1; {halves} mul.rn.f16x2 p, a0, $2;"
    text += "".join(f"fma.rn.f16x2 p, a{n}, ${2 + n}, p;" for n in range(1, 4))
    text += f"mov.b32 w, v; {halves}"
    text += "".join(f"fma.rn.f16x2 p, a{n}, ${6 + n}, p;" for n in range(4))
    return text + "mov.b32 {l, h}, p; cvt.f32.f16 f, l; cvt.f32.f16 g, h; add.rn.f32 $0, f, g;}"


LOW_DOT, HIGH_DOT = (tl.constexpr(_dot_of(_looked_up(high))) for high in (False, True))


def _columns_of_x(norm: bool) -> str:
    """Sixteen bfloat16 of x as `_dot_of` takes them ($0 … $7), with a power of 2 of their own that
    puts the largest below 2**15, so that sums stay in range, and what undoes that and 2**-6 ($8).
    `norm`: x is multiplied by another sixteen before, and the sum of its squares is $9 (else 0)."""
    text = "{.reg .b32 t, u, m, z, n<8>, w<8>; .reg .f32 f, q; mov.b32 z, 0x80008000;"
    text += "mov.f32 q, 0f00000000;"
    for four in range(4):
        text += f"mov.b64 {{n{2 * four}, n{2 * four + 1}}}, ${10 + four};"
    if norm:
        for four in range(4):
            text += f"mov.b64 {{w{2 * four}, w{2 * four + 1}}}, ${14 + four};"
        for n in range(8):
            text += f"shl.b32 t, n{n}, 16; and.b32 u, n{n}, 0xFFFF0000;"
            text += "mov.b32 f, t; fma.rn.f32 q, f, f, q; mov.b32 f, u; fma.rn.f32 q, f, f, q;"
            text += f"fma.rn.bf16x2 n{n}, n{n}, w{n}, z;"
    text += "mov.f32 $9, q; max.xorsign.abs.bf16x2 m, n0, n1;"
    text += "".join(f"max.xorsign.abs.bf16x2 m, m, n{n};" for n in range(2, 8))
    text += "shl.b32 t, m, 16; max.xorsign.abs.bf16x2 m, m, t; and.b32 m, m, 0x7F800000;"
    text += "max.u32 m, m, 0x14000000; sub.u32 t, m, 0x04000000; mov.b32 $8, t;"
    text += "sub.u32 m, 0x86000000, m; prmt.b32 m, m, m, 0x3232;"
    text += "".join(f"fma.rn.bf16x2 n{n}, n{n}, m, z;" for n in range(8))
    for n in range(0, 8, 2):
        text += f"shl.b32 t, n{n}, 16; shl.b32 u, n{n + 1}, 16; cvt.rn.f16x2.f32 ${n}, u, t;"
        text += f"and.b32 t, n{n}, 0xFFFF0000; and.b32 u, n{n + 1}, 0xFFFF0000;"
        text += f"cvt.rn.f16x2.f32 ${n + 1}, u, t;"
    return text + "}"


COLUMNS = tl.constexpr(_columns_of_x(norm=False))
NORMED_COLUMNS = tl.constexpr(_columns_of_x(norm=True))
OUT = tl.constexpr(",".join(["=&r"] * 8 + ["=&f"] * 2))
# An E4M3 scale ($1) times 2**119 in bfloat16, twice, in two steps: no constant is that large.
SCALE = tl.constexpr("""
{
.reg .b32 s, t, z;
mov.b32 z, 0x80008000;
mul.lo.u32 s, $1, 0x00100010;
mov.b32 t, 0x7F007F00;
fma.rn.bf16x2 s, s, t, z;
mov.b32 t, 0x77807780;
fma.rn.bf16x2 $0, s, t, z;
}
""")
# Two of them, 2**8 too small, in float32 ($0, $1) of 16 bits ($2).
TWO_SCALES = tl.constexpr("""
{
.reg .b32 t; .reg .b16 l, h;
prmt.b32 t, $2, 0, 0x1404; shr.u32 t, t, 1;
mov.b32 {l, h}, t; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h;
}
""")


def _pairs(scaled: bool) -> str:
    """Codes 2 p and 2 p + 1 of a word as `lay` puts them ($4) in $p, in bfloat16 2**126 too small;
    `scaled`: times a scale ($5), both 2**7."""
    text = "{.reg .b32 a, b, c, d, z; mov.b32 z, 0x80008000;"
    text += "shl.b32 a, $4, 6; shf.l.wrap.b32 b, $4, $4, 12; shl.b32 c, $4, 2; shr.u32 d, $4, 6;"
    text += "and.b32 $0, $4, 0x81C081C0; and.b32 $1, a, 0x81C081C0; and.b32 $2, b, 0x81C081C0;"
    text += "lop3.b32 $3, c, d, 0x81C081C0, 0x28;"
    return text + "".join(f"fma.rn.bf16x2 ${p}, ${p}, $5, z;" for p in range(4) if scaled) + "}"


PAIRS, SCALED_PAIRS = (tl.constexpr(_pairs(scaled)) for scaled in (False, True))


def _pairs_looked_up(high_first: bool) -> str:
    """Codes 2 p and 2 p + 1 of a word ($4) times its scale ($5) by a table in $6 … $13 (see
    `_words`), in $p."""
    text = "{.reg .b32 t, s, m, r, u, k, by, z; mov.b32 z, 0x80008000; prmt.b32 by, $5, $5, 0x1010;"
    tables = {"u": (6, 7, 8, 9), "k": (10, 11, 12, 13)}
    for n, four in enumerate(_picked("$4", tables)):
        for pair, order in enumerate(("0x4051", "0x6273") if high_first else ("0x5140", "0x7362")):
            text += four if pair == 0 else ""
            text += f"prmt.b32 ${2 * n + pair}, k, u, {order};"
    return text + "".join(f"fma.rn.bf16x2 ${p}, ${p}, by, z;" for p in range(4)) + "}"


LOW_PAIRS, HIGH_PAIRS = (tl.constexpr(_pairs_looked_up(high)) for high in (False, True))
# Two numbers of x ($1), with those of a norm ($2), times 2**96: so products with codes that are
# 2**126 too small are far from the denormals.
RAISED = tl.constexpr("""
{.reg .b32 k, z; mov.b32 k, 0x6F806F80; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, k, z;}
""")
NORMED_RAISED = tl.constexpr("""
{
.reg .b32 k, t, z;
mov.b32 k, 0x6F806F80; mov.b32 z, 0x80008000;
fma.rn.bf16x2 t, $1, $2, z; fma.rn.bf16x2 $0, t, k, z;
}
""")
RAISE = tl.constexpr(2.0**96)


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
    if FORMAT == "int4":
        return (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0  # 2**23 + 8
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
def _read(pointers, mask):
    """Weights; a hint that they are read once would cost two instructions each."""
    return tl.load(pointers, mask=mask, other=0)


@triton.jit
def _halves(x):
    """Elements 0, 2, … and 1, 3, … of the last dimension."""
    return tl.split(tl.reshape(x, x.shape[:-1] + (x.shape[-1] // 2, 2)))


@triton.jit
def _four(x):
    """Elements 0, 1, 2 and 3 of the last dimension (…, 4)."""
    even, odd = _halves(x)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _two(v):
    """The bfloat16 in the halves of 32 bits, (…, 2)."""
    low = (v & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, (v >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True))


@triton.jit
def _sixteen(ptr, at, inside):
    """Sixteen bfloat16 in a row, four in 64 bits."""
    fours = ptr.to(tl.pointer_type(tl.int64)) + 4 * at
    return (
        tl.load(fours, mask=inside, other=0),
        tl.load(fours + 1, mask=inside, other=0),
        tl.load(fours + 2, mask=inside, other=0),
        tl.load(fours + 3, mask=inside, other=0),
    )


@triton.jit
def _columns(
    x_ptr, norm_ptr, at, inside, HIGH_FIRST: tl.constexpr, NORM: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """Of 16 columns of x each, at (1, BW): what `_dots` takes, its scale, and sums of squares."""
    if FAST:
        taken = _sixteen(x_ptr, at, inside)
        if NORM:
            taken = taken + _sixteen(norm_ptr, at, inside)
        found = tl.inline_asm_elementwise(
            NORMED_COLUMNS if NORM else COLUMNS,
            OUT + (",l,l,l,l,l,l,l,l" if NORM else ",l,l,l,l"),
            taken,
            dtype=(tl.int32,) * 8 + (tl.float32,) * 2,
            is_pure=True,
            pack=1,
        )
        return found[:8], found[8], found[9]
    else:
        squares = tl.zeros(at.shape, tl.float32)
        xs = ()
        for j in tl.static_range(16):
            place = 16 * at + (j ^ 1 if HIGH_FIRST else j)
            x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                squares += x * x
                x *= tl.load(norm_ptr + place, mask=inside, other=0.0).to(tl.float32)
            xs = xs + (x,)
        return xs, tl.full(at.shape, 1.0, tl.float32), squares


@triton.jit
def _words_of_table(table_ptr, BW: tl.constexpr, FORMAT: tl.constexpr, FAST: tl.constexpr):
    """What codes are looked up in, (1, BW) each. Lanes take one of two copies: words that are known
    to be the same for a warp would be moved to where they are needed at each use."""
    words = ()
    if FAST and FORMAT != "nvfp4":  # whose codes are numbers but for a shift
        copy = 8 * (tl.arange(0, BW) & 1)
        for n in tl.static_range(8):
            words = words + (tl.load(table_ptr + copy + n)[None, :],)
    return words


@triton.jit
def _dots(
    longs, x, words, table_ptr, FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """Of 16 codes in 64 bits (BN, BW): dot products with their x, without scales."""
    if FAST:
        return tl.inline_asm_elementwise(
            HIGH_DOT if HIGH_FIRST else LOW_DOT,
            "=f,l,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            (longs,) + x + words,
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        dots = tl.zeros(longs.shape, tl.float32)
        for j in tl.static_range(16):
            dots += _value(((longs >> (4 * j)) & 15).to(tl.int32), table_ptr, FORMAT) * x[j]
        return dots


@triton.jit
def _long_tile(
    step: tl.constexpr, longs_ptr, scales_ptr, rows, there, K: tl.constexpr, BW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A step's codes of a weight in 64 bits each, and their scales, (BN, BW)."""
    # Lanes lie along the columns, rows in registers: what was made of x serves them all. The hint
    # keeps to a word a lane; `max_contiguous` would, too, but lay lanes along the rows to read.
    columns = step * BW + tl.multiple_of(tl.arange(0, BW), 1)[None, :]
    mask = there[:, None]
    if K % (16 * BW) != 0:
        mask = mask & (columns < K // 16)
    longs = _read(longs_ptr + (rows * (K // 16))[:, None] + columns, mask)
    scales = _read(scales_ptr + (rows * (K // BLOCK))[:, None] + columns // (BLOCK // 16), mask)
    return longs, scales


@triton.jit
def _packed_matvec(
    x_ptr,  # (1, K)
    longs_ptr,  # (N, K / 16) int64, or (2 N, K / 16) where GATED
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
    BW: tl.constexpr,  # 64 bits each, of a tile
    AHEAD: tl.constexpr,  # tiles in flight
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    STEPS: tl.constexpr = (K // 16 + BW - 1) // BW
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    there = rows < N
    tiles = ()
    up_tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + (_long_tile(step, longs_ptr, scales_ptr, rows, there, K, BW, BLOCK),)
        if GATED:
            new = _long_tile(step, longs_ptr, scales_ptr, rows + N, there, K, BW, BLOCK)
            up_tiles = up_tiles + (new,)
    if PDL:
        gdc_wait()
    words = _words_of_table(table_ptr, BW, FORMAT, FAST)
    squares = tl.zeros((1, BW), tl.float32)
    acc = tl.zeros((BN, BW), tl.float32)
    up_acc = tl.zeros((BN, BW), tl.float32)
    for step in tl.static_range(STEPS):
        at = step * BW + tl.multiple_of(tl.arange(0, BW), 1)[None, :]
        x, scale, more = _columns(x_ptr, norm_ptr, at, at < K // 16, HIGH_FIRST, NORM, FAST)
        squares += more
        longs, raw = tiles[0]
        tiles = tiles[1:]
        acc += _dots(longs, x, words, table_ptr, FORMAT, HIGH_FIRST, FAST) * (
            _scale(raw, FORMAT) * scale
        )
        if GATED:
            longs, raw = up_tiles[0]
            up_tiles = up_tiles[1:]
            up_acc += _dots(longs, x, words, table_ptr, FORMAT, HIGH_FIRST, FAST) * (
                _scale(raw, FORMAT) * scale
            )
        if step + AHEAD < STEPS:
            new = _long_tile(step + AHEAD, longs_ptr, scales_ptr, rows, there, K, BW, BLOCK)
            tiles = tiles + (new,)
            if GATED:
                new = _long_tile(step + AHEAD, longs_ptr, scales_ptr, rows + N, there, K, BW, BLOCK)
                up_tiles = up_tiles + (new,)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares) / K + eps)
    out = tl.sum(acc, 1) * factor * _overall(overall_ptr, rows, FIRST, SECOND, SCALED)
    up = tl.sum(up_acc, 1) * factor * _overall(overall_ptr, rows + N, FIRST, SECOND, SCALED)
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
def _scales(raw, FORMAT: tl.constexpr, FAST: tl.constexpr):
    """Blocks' scales as `_planes` takes them."""
    if FAST and FORMAT == "nvfp4":
        return tl.inline_asm_elementwise(
            SCALE, "=r,r", [raw.to(tl.int32)], dtype=tl.int32, is_pure=True, pack=1
        )
    elif FAST:
        return raw.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        return _scale(raw, FORMAT)


@triton.jit
def _laid(words, p: tl.constexpr):
    """float32 of codes 2 p and 2 p + 1 (…, 2) of words as `lay` puts them."""
    if p == 1:
        words = words << 6
    elif p == 2:
        words = (words << 12) | ((words >> 20) & 0xFFF)
    elif p == 3:
        words = (words << 2) ^ ((words >> 6) & 0x3FFFFFF)
    both = tl.join(words & 0x81C0, (words >> 16) & 0x81C0)
    return (both << 16).to(tl.float32, bitcast=True) * E2M1


@triton.jit
def _nibbles(
    words, table_ptr, p: tl.constexpr, FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr
):  # fmt: skip
    """float32 of codes 2 p and 2 p + 1 (…, 2) of words of nibbles."""
    low = _value((words >> 8 * p) & 15, table_ptr, FORMAT)
    high = _value((words >> 8 * p + 4) & 15, table_ptr, FORMAT)
    return tl.join(high, low) if HIGH_FIRST else tl.join(low, high)


@triton.jit
def _planes(
    words, scales, table, table_ptr, KIND: tl.constexpr, FORMAT: tl.constexpr,
    HIGH_FIRST: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Four planes (…, 2) of words (…) in the type KIND: codes 2 p and 2 p + 1 of each times its
    scale (…); where FAST bfloat16, 2**7 too small."""
    if FAST:
        if FORMAT == "nvfp4":
            four = tl.inline_asm_elementwise(
                SCALED_PAIRS, "=&r,=&r,=&r,=&r,r,r", (words, scales),
                dtype=(tl.int32,) * 4, is_pure=True, pack=1,
            )  # fmt: skip
        else:
            four = tl.inline_asm_elementwise(
                HIGH_PAIRS if HIGH_FIRST else LOW_PAIRS,
                "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r", (words, scales) + table,
                dtype=(tl.int32,) * 4, is_pure=True, pack=1,
            )  # fmt: skip
        return _two(four[0]), _two(four[1]), _two(four[2]), _two(four[3])
    else:
        planes = ()
        for p in tl.static_range(4):
            if FORMAT == "nvfp4":
                pair = _laid(words, p)
            else:
                pair = _nibbles(words, table_ptr, p, FORMAT, HIGH_FIRST)
            planes = planes + ((pair * tl.expand_dims(scales, -1)).to(KIND),)
        return planes


@triton.jit
def _spread(scales, TIMES: tl.constexpr):
    """(…, B) as (…, B TIMES), each so often."""
    LINES: tl.constexpr = scales.shape[:-1]
    BLOCKS: tl.constexpr = scales.shape[-1]
    wide = tl.broadcast_to(tl.expand_dims(scales, -1), LINES + (BLOCKS, TIMES))
    return tl.reshape(wide, LINES + (BLOCKS * TIMES,))


@triton.jit
def _store(out_ptr, out, rows, batch, split, M, N):
    """Products (rows of the weight, rows of x)."""
    spots = (split * M + batch).to(tl.int64)[None, :] * N + rows[:, None]
    there = (batch < M)[None, :] & (rows < N)[:, None]
    tl.store(out_ptr + spots, out.to(out_ptr.dtype.element_ty), mask=there)


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
    words = words_ptr + line_of * WORDS + columns
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
        some = _flat(_read(words + step * WIDE, left))
        raw = _flat(_read(scales + step * (WIDE // GROUP), held))
        by = _spread(_scales(raw, FORMAT, FAST), GROUP)
        planes = _planes(some, by, table, table_ptr, KIND, FORMAT, HIGH_FIRST, FAST)
        for p in tl.static_range(4):
            plane = tl.reshape(planes[p], some.shape[:-1] + (2 * BW,))
            acc = tl.dot(plane, _turned(xs[p]), acc, input_precision="ieee")
    if SLABS > 1:
        acc = tl.sum(acc, 0)
    if PDL:
        gdc_launch_dependents()
    factor = _overall(overall_ptr, part, FIRST, SECOND, SCALED)
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
    _store(out_ptr, acc, rows, batch, split, M, N)


@triton.jit
def _pairs_of_x(x, BW: tl.constexpr, FAST: tl.constexpr):
    """Of x (…, 8 BW), where FAST in pairs (…, 4 BW): what each plane meets, (…, 2 BW)."""
    LINES: tl.constexpr = x.shape[:-1]
    if FAST:
        x = _four(tl.reshape(x, LINES + (BW, 4)))
        xs = (_two(x[0]), _two(x[1]), _two(x[2]), _two(x[3]))
    else:
        x = tl.reshape(x, LINES + (BW, 4, 2))
        if len(LINES) == 1:
            xs = _four(tl.permute(x, (0, 1, 3, 2)))
        else:
            xs = _four(tl.permute(x, (0, 1, 2, 4, 3)))
    ALL: tl.constexpr = LINES + (2 * BW,)
    return (
        tl.reshape(xs[0], ALL), tl.reshape(xs[1], ALL),
        tl.reshape(xs[2], ALL), tl.reshape(xs[3], ALL),
    )  # fmt: skip


# Kernels of up to 8 rows. A lane reads the words that tensor cores want of it, four after each
# other: columns 4 t + 2 b + c of a product are word 4 t + 2 h + b, number 2 p + c of its pairs.
# Pointers: lanes are laid along the last dimension, then the first, warps along the one of slabs,
# in the order in which numbers are said to lie together, whatever the compiler makes of equal
# dimensions.


@triton.jit
def _of_lanes(first, group, N, K: tl.constexpr, BN: tl.constexpr, BOTH: tl.constexpr):
    """Where words (8, SLABS, LINES, 16) lie, their rows and columns, and the same of their blocks'
    scales, two of which are one (8, LINES SLABS, 4)."""
    SLABS: tl.constexpr = group.shape[0]
    LINES: tl.constexpr = BN // 8
    eights = tl.arange(0, LINES)[None, None, :, None]  # of rows, in turns of gate and of up
    rows = first + 8 * (eights // BOTH) + tl.arange(0, 8)[:, None, None, None]
    columns = group[None, :, None, None] + tl.arange(0, 16)[None, None, None, :]
    words = (rows + eights % BOTH * N) * (K // 8) + columns
    both = tl.arange(0, LINES * SLABS)[None, :, None]
    lines = first + 8 * (both // SLABS // BOTH) + tl.arange(0, 8)[:, None, None]
    part = lines + both // SLABS % BOTH * N
    apart = tl.multiple_of(tl.arange(0, 4), 1)  # not to be read at once
    pairs = (tl.min(group) + 16 * (both % SLABS)) // 4 + apart[None, None, :]
    if K % 32 == 0:
        scales = part * (K // 32) + pairs
    else:
        scales = part * (K // 16) + 2 * pairs
    return words, rows, columns, scales, lines, pairs


@triton.jit
def _words_and_scales(
    words, rows, columns, scales, lines, pairs, N, step: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A step's words (8, SLABS, LINES, 16) and the scales of their blocks, two in 16 bits."""
    there, held = rows < N, lines < N
    if not EVEN:
        there = there & (columns < K // 8 - step * WIDE)
        held = held & (pairs < (K + 16) // 32 - step * (WIDE // 4))
    some = tl.load(words + step * WIDE, mask=there, other=0)
    if K % 32 == 0:
        return some, tl.load(scales + step * (WIDE // 4), mask=held, other=0)
    else:  # two in 16 bits would lie across
        first = tl.load(scales + step * (WIDE // 2), mask=held, other=0).to(tl.int32)
        held = held & (pairs < K // 32 - step * (WIDE // 4))
        second = tl.load(scales + (step * (WIDE // 2) + 1), mask=held, other=0).to(tl.int32)
        return some, (first | (second << 8)).to(tl.int16)


@triton.jit
def _sides(words):
    """Words (8, SLABS, LINES, 16) as the lanes hold them: of h = 0 and of 1, (SLABS, 8 LINES, 8)"""
    SLABS: tl.constexpr = words.shape[1]
    LINES: tl.constexpr = words.shape[2]
    words = tl.permute(tl.reshape(words, (8, SLABS, LINES, 4, 2, 2)), (1, 2, 0, 3, 5, 4))
    one, two = tl.split(words)
    SHAPE: tl.constexpr = (SLABS, 8 * LINES, 8)
    return tl.reshape(one, SHAPE), tl.reshape(two, SHAPE)


@triton.jit
def _lines(x, SLABS: tl.constexpr):
    """Scales (8, LINES SLABS, 4) as (SLABS, 8 LINES, 4)."""
    LINES: tl.constexpr = x.shape[1] // SLABS
    x = tl.permute(tl.reshape(x, (8, LINES, SLABS, 4)), (2, 1, 0, 3))
    return tl.reshape(x, (SLABS, 8 * LINES, 4))


@triton.jit
def _tiles_of_x(one, two, FAST: tl.constexpr):
    """Pairs of x in 32 bits (4, SLABS 8, 4), of words b = 0 and 1, as four (SLABS, 16, 8)."""
    SLABS: tl.constexpr = one.shape[1] // 8
    one = _four(tl.permute(tl.reshape(one, (4, SLABS, 8, 4)), (1, 0, 2, 3)))
    two = _four(tl.permute(tl.reshape(two, (4, SLABS, 8, 4)), (1, 0, 2, 3)))
    return (
        _tile_of_x(one[0], two[0], FAST), _tile_of_x(one[1], two[1], FAST),
        _tile_of_x(one[2], two[2], FAST), _tile_of_x(one[3], two[3], FAST),
    )  # fmt: skip


@triton.jit
def _tile_of_x(one, two, FAST: tl.constexpr):
    x = _two(tl.join(one, two))  # SLABS, t, row, b, c
    if not FAST:
        x = x.to(tl.float32)
    return tl.reshape(tl.permute(x, (0, 1, 3, 4, 2)), (x.shape[0], 16, 8))


@triton.jit
def _columns_of_tile(slab, p: tl.constexpr):
    """(SLABS, 16, 1): of a step's columns those that plane p of h = 0 meets; of h = 1 16 more."""
    k = tl.arange(0, 16)
    at = 32 * (k // 4) + 8 * (k // 2 % 2) + 2 * p + k % 2
    return 128 * slab[:, None, None] + at[None, :, None]


@triton.jit
def _first_rows(out, at, overall_ptr, bias_ptr, N, FIRST, SECOND, BN: tl.constexpr,
    SCALED: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Sums (BN, B) with what comes after them, (TALL, B); `at`: rows (TALL,)."""
    BOTH: tl.constexpr = 2 if GATED else 1
    TALL: tl.constexpr = BN // BOTH
    COLUMNS: tl.constexpr = out.shape[1]
    out = tl.reshape(out, (BN // 8 // BOTH, BOTH, 8, COLUMNS))
    if GATED:
        out, up = tl.split(tl.permute(out, (0, 2, 3, 1)))
        up = tl.reshape(up, (TALL, COLUMNS))
        up *= _overall(overall_ptr, at + N, FIRST, SECOND, SCALED)[:, None]
        if BIAS:
            up += tl.load(bias_ptr + N + at, mask=at < N, other=0.0).to(tl.float32)[:, None]
    out = tl.reshape(out, (TALL, COLUMNS))
    out *= _overall(overall_ptr, at, FIRST, SECOND, SCALED)[:, None]
    if BIAS:
        out += tl.load(bias_ptr + at, mask=at < N, other=0.0).to(tl.float32)[:, None]
    out = activated(out, ACT)
    if GATED:
        out *= up
    return out


@triton.jit
def _x_of_rows(
    x_ptr, pairs, row, at, begin, slab, step: tl.constexpr, M, K: tl.constexpr, WIDE: tl.constexpr,
    EVEN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """A step's columns of up to 8 rows of x: eight (SLABS, 16, 8), of h = 0 and of 1. `pairs`: of
    x in 32 bits, where each lane's first columns `at` of its row lie."""
    rows = tl.arange(0, 8)
    if tl.bfloat16 == x_ptr.dtype.element_ty:
        words = ()
        for word in tl.static_range(4):
            there = row < M
            if not EVEN:
                there = there & (at < K // 2 - 4 * (step * WIDE + word))
            words = words + (tl.load(pairs + 4 * (step * WIDE + word), mask=there, other=0),)
        one = _tiles_of_x(words[0], words[1], FAST)
        return one + _tiles_of_x(words[2], words[3], FAST)
    else:
        xs = ()
        for h in tl.static_range(2):
            for p in tl.static_range(4):
                column = 8 * (begin + step * WIDE) + 16 * h + _columns_of_tile(slab, p)
                there = (column < K) & (rows < M)[None, None, :]
                x = tl.load(x_ptr + rows[None, None, :] * K + column, mask=there, other=0.0)
                xs = xs + (x,)
        return xs


@triton.jit
def _packed_skinny(
    x_ptr,  # (M, K)
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / 16) uint8
    overall_ptr,  # (parts,)
    table_ptr,  # (16,)
    out_ptr,  # as of `_packed_wide`
    bias_ptr,
    M,
    N,
    FIRST,
    SECOND,
    K: tl.constexpr,
    BN: tl.constexpr,  # rows of the weight at a time, where GATED of both
    SLABS: tl.constexpr,  # of 16 words, each with a warp of its own
    SPLITS: tl.constexpr,
    AHEAD: tl.constexpr,  # tiles in flight
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Up to 8 rows of x, which stay in registers."""
    if PDL:
        gdc_launch_dependents()
    KIND: tl.constexpr = tl.bfloat16 if FAST else tl.float32
    WORDS: tl.constexpr = K // 8
    WIDE: tl.constexpr = 16 * SLABS
    STEPS: tl.constexpr = ((WORDS + WIDE - 1) // WIDE + SPLITS - 1) // SPLITS
    EVEN: tl.constexpr = STEPS * SPLITS * WIDE == WORDS
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    BOTH: tl.constexpr = 2 if GATED else 1
    TALL: tl.constexpr = BN // BOTH
    split = tl.program_id(1)
    slab = tl.arange(0, SLABS)
    begin = split * (STEPS * WIDE)
    words, rows, columns, scales, lines, pairs = _of_lanes(
        tl.program_id(0) * TALL, begin + 16 * slab, N, K, BN, BOTH
    )
    words = tl.max_contiguous(words_ptr + words, (4, 2, 1, 8))
    if K % 32 == 0:
        scales_ptr = scales_ptr.to(tl.pointer_type(tl.int16))
    scales = tl.max_contiguous(scales_ptr + scales, (2, 1, 4))
    tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + _words_and_scales(
            words, rows, columns, scales, lines, pairs, N, step, K, WIDE, EVEN
        )
    row = tl.arange(0, 8 * SLABS)[None, :, None]  # of each slab
    spots = 4 * begin + 64 * (row // 8) + 16 * tl.arange(0, 4)[:, None, None]
    spots += tl.arange(0, 4)[None, None, :]
    row = row % 8
    x_pairs = x_ptr.to(tl.pointer_type(tl.int32)) + row * (K // 2) + spots
    x_pairs = tl.max_contiguous(x_pairs, (2, 1, 4))
    if PDL:
        gdc_wait()
    xs = ()
    for step in tl.static_range(STEPS):
        xs = xs + _x_of_rows(x_ptr, x_pairs, row, spots, begin, slab, step, M, K, WIDE, EVEN, FAST)
    batch = tl.arange(0, 8)
    further = tl.num_programs(0) * TALL
    for first in tl.range(tl.program_id(0) * TALL, N, further, num_stages=1):
        # Of h = 0 and of 1: neither waits for the other.
        acc = tl.zeros((SLABS, BN, 8), tl.float32)
        other = tl.zeros((SLABS, BN, 8), tl.float32)
        for step in tl.static_range(STEPS):
            one, two = _sides(tiles[0])
            raw = _lines(tiles[1], SLABS).to(tl.int32)
            by = _spread(_scales(raw & 255, "nvfp4", FAST), 2)
            one = _planes(one, by, (), table_ptr, KIND, "nvfp4", False, FAST)
            by = _spread(_scales((raw >> 8) & 255, "nvfp4", FAST), 2)
            two = _planes(two, by, (), table_ptr, KIND, "nvfp4", False, FAST)
            for p in tl.static_range(4):
                a = tl.reshape(one[p], (SLABS, BN, 16))
                acc = tl.dot(a, xs[8 * step + p].to(KIND), acc, input_precision="ieee")
                b = tl.reshape(two[p], (SLABS, BN, 16))
                other = tl.dot(b, xs[8 * step + 4 + p].to(KIND), other, input_precision="ieee")
            if step + EARLY == STEPS:
                words += further * WORDS
                scales += further * (K // 32 if K % 32 == 0 else K // 16)
                rows += further
                lines += further
            tiles = tiles[2:] + _words_and_scales(
                words, rows, columns, scales, lines, pairs, N, (step + EARLY) % STEPS, K, WIDE, EVEN
            )
        out = tl.sum(acc + other, 0)
        if FAST:
            out *= HALF_REST
        at = first + tl.arange(0, TALL)
        out = _first_rows(
            out, at, overall_ptr, bias_ptr, N, FIRST, SECOND, BN, SCALED, GATED, ACT, BIAS
        )
        _store(out_ptr, out, at, batch, split, M, N)


@triton.jit
def _x_of_row(
    x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, NORM: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """A step's columns of x (times the norm's weights), as four (SLABS, 16, 8): column n has the
    numbers of block n alone, which lanes t = n / 2 hold. `x_pairs`, `norm_pairs`: in 32 bits, where
    each lane's first columns `at` lie."""
    n = tl.arange(0, 8)
    if tl.bfloat16 == x_ptr.dtype.element_ty:
        both = ()
        for b in tl.static_range(2):
            column = tl.arange(0, at.shape[1])[None, :, None] % 8
            there = column // 2 == tl.arange(0, 4)[:, None, None]
            if not EVEN:
                there = there & (at < K // 2 - 4 * (step * WIDE + b))
            x = tl.load(x_pairs + 4 * (step * WIDE + b), mask=there, other=0)
            if NORM:
                by = tl.load(norm_pairs + 4 * (step * WIDE + b), mask=there, other=0)
                x = _normed_raised(x, by, FAST)
            else:
                x = _raised(x, FAST)
            both = both + (x,)
        return _tiles_of_x(both[0], both[1], FAST)
    else:
        xs = ()
        mine = (n // 2)[None, None, :] == (tl.arange(0, 16) // 4)[None, :, None]
        for p in tl.static_range(4):
            column = 8 * step * WIDE + _columns_of_tile(slab, p) + 16 * (n % 2)[None, None, :]
            there = mine & (column < K)
            x = tl.load(x_ptr + column, mask=there, other=0.0).to(tl.float32)
            if NORM:
                x *= tl.load(norm_ptr + column, mask=there, other=0.0).to(tl.float32)
            xs = xs + (x,)
        return xs


@triton.jit
def _raised(x, FAST: tl.constexpr):
    """Two bfloat16 in 32 bits times RAISE where FAST, else as they are."""
    if FAST:
        return tl.inline_asm_elementwise(RAISED, "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    else:
        return x


@triton.jit
def _normed_raised(x, by, FAST: tl.constexpr):
    """The same, multiplied by another two before, rounded."""
    if FAST:
        return tl.inline_asm_elementwise(
            NORMED_RAISED, "=r,r,r", [x, by], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        low = (x << 16).to(tl.float32, bitcast=True) * (by << 16).to(tl.float32, bitcast=True)
        high = (x & -65536).to(tl.float32, bitcast=True) * (by & -65536).to(
            tl.float32, bitcast=True
        )
        low = low.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return low | (high.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _row_sums(
    acc, words, pairs, xs, table_ptr, FAST: tl.constexpr
):  # fmt: skip
    """acc (SLABS, BN, 4) and what a step adds: a block's sums are its own column's, multiplied by
    its scale (2**8 too small where FAST) in float32."""
    one, two = _sides(words)
    raw = _lines(pairs, words.shape[1]).to(tl.int32) & 0xFFFF
    SHAPE: tl.constexpr = (raw.shape[0], raw.shape[1])
    if FAST:
        scale, other = tl.inline_asm_elementwise(
            TWO_SCALES, "=f,=f,r", [raw], dtype=(tl.float32, tl.float32), is_pure=True, pack=1
        )
        # Not scaled yet.
        a = tl.inline_asm_elementwise(
            PAIRS, "=&r,=&r,=&r,=&r,r", [one], dtype=(tl.int32,) * 4, is_pure=True, pack=1
        )
        b = tl.inline_asm_elementwise(
            PAIRS, "=&r,=&r,=&r,=&r,r", [two], dtype=(tl.int32,) * 4, is_pure=True, pack=1
        )
        one = (_two(a[0]), _two(a[1]), _two(a[2]), _two(a[3]))
        two = (_two(b[0]), _two(b[1]), _two(b[2]), _two(b[3]))
    else:
        scale, other = _scale(raw & 255, "nvfp4"), _scale(raw >> 8, "nvfp4")
        one = (_laid(one, 0), _laid(one, 1), _laid(one, 2), _laid(one, 3))
        two = (_laid(two, 0), _laid(two, 1), _laid(two, 2), _laid(two, 3))
    first = tl.zeros(SHAPE + (8,), tl.float32)
    second = tl.zeros(SHAPE + (8,), tl.float32)
    for p in tl.static_range(4):
        a = tl.reshape(one[p], SHAPE + (16,))
        first = tl.dot(a, xs[p], first, input_precision="ieee")
        b = tl.reshape(two[p], SHAPE + (16,))
        second = tl.dot(b, xs[p], second, input_precision="ieee")
    even, _ = _halves(first)
    _, odd = _halves(second)
    return acc + even * scale + odd * other


@triton.jit
def _packed_row(
    x_ptr,  # (1, K)
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / 16) uint8
    overall_ptr,  # (parts,)
    table_ptr,  # (16,)
    out_ptr,  # (1, N)
    norm_ptr,  # (K,)
    residual_ptr,  # (1, N)
    bias_ptr,  # (N,), or (2 N,) where GATED
    N,
    FIRST,
    SECOND,
    eps,
    K: tl.constexpr,
    BN: tl.constexpr,
    SLABS: tl.constexpr,
    AHEAD: tl.constexpr,
    KEEP: tl.constexpr,  # x stays in registers
    ONCE: tl.constexpr,  # there is a program for each tile
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of x. Its blocks are the eight columns of a product on tensor cores, so that codes
    meet it as they are and a block's scale multiplies its sum."""
    if PDL:
        gdc_launch_dependents()
    WORDS: tl.constexpr = K // 8
    WIDE: tl.constexpr = 16 * SLABS
    STEPS: tl.constexpr = (WORDS + WIDE - 1) // WIDE
    EVEN: tl.constexpr = STEPS * WIDE == WORDS
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    BOTH: tl.constexpr = 2 if GATED else 1
    TALL: tl.constexpr = BN // BOTH
    slab = tl.arange(0, SLABS)
    words, rows, columns, scales, lines, pairs = _of_lanes(
        tl.program_id(0) * TALL, 16 * slab, N, K, BN, BOTH
    )
    words = tl.max_contiguous(words_ptr + words, (4, 2, 1, 8))
    if K % 32 == 0:
        scales_ptr = scales_ptr.to(tl.pointer_type(tl.int16))
    scales = tl.max_contiguous(scales_ptr + scales, (2, 1, 4))
    tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + _words_and_scales(
            words, rows, columns, scales, lines, pairs, N, step, K, WIDE, EVEN
        )
    # t in place of n / 2, so that lanes of neighbours read neighbours.
    n = tl.arange(0, 8 * SLABS)[None, :, None]  # of each slab
    at = 64 * (n // 8) + 8 * (2 * tl.arange(0, 4)[:, None, None] + n % 2)
    at += tl.arange(0, 4)[None, None, :]
    x_pairs = tl.max_contiguous(x_ptr.to(tl.pointer_type(tl.int32)) + at, (2, 1, 4))
    norm_pairs = tl.max_contiguous(norm_ptr.to(tl.pointer_type(tl.int32)) + at, (2, 1, 4))
    if PDL:
        gdc_wait()
    xs = ()
    for step in tl.static_range(STEPS if KEEP else 0):
        xs = xs + _x_of_row(
            x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step, K, WIDE, EVEN, NORM, FAST
        )
    factor = 1.0
    if NORM:
        factor = _row_factor(x_ptr, eps, K, 256 * SLABS)
    if FAST:
        factor *= E2M1 / RAISE * 256.0
    start = tl.program_id(0) * TALL
    if ONCE:
        acc = tl.zeros((SLABS, BN, 4), tl.float32)
        for step in tl.static_range(STEPS):
            if KEEP:
                x = xs[4 * step : 4 * step + 4]
            else:
                x = _x_of_row(
                    x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step, K, WIDE, EVEN, NORM, FAST
                )
            acc = _row_sums(acc, tiles[0], tiles[1], x, table_ptr, FAST)
            tiles = tiles[2:]
            if step + EARLY < STEPS:
                tiles = tiles + _words_and_scales(
                    words, rows, columns, scales, lines, pairs, N, step + EARLY, K, WIDE, EVEN
                )
        _store_rows(
            acc, factor, start, out_ptr, residual_ptr, overall_ptr, bias_ptr, N, FIRST, SECOND, BN,
            SCALED, GATED, ACT, RESIDUAL, BIAS,
        )  # fmt: skip
    else:
        further = tl.num_programs(0) * TALL
        for first in tl.range(start, N, further, num_stages=1):
            acc = tl.zeros((SLABS, BN, 4), tl.float32)
            for step in tl.static_range(STEPS):
                if KEEP:
                    x = xs[4 * step : 4 * step + 4]
                else:
                    x = _x_of_row(
                        x_ptr,
                        norm_ptr,
                        x_pairs,
                        norm_pairs,
                        at,
                        slab,
                        step,
                        K,
                        WIDE,
                        EVEN,
                        NORM,
                        FAST,
                    )
                acc = _row_sums(acc, tiles[0], tiles[1], x, table_ptr, FAST)
                if step + EARLY == STEPS:
                    words += further * WORDS
                    scales += further * (K // 32 if K % 32 == 0 else K // 16)
                    rows += further
                    lines += further
                tiles = tiles[2:] + _words_and_scales(
                    words,
                    rows,
                    columns,
                    scales,
                    lines,
                    pairs,
                    N,
                    (step + EARLY) % STEPS,
                    K,
                    WIDE,
                    EVEN,
                )
            _store_rows(
                acc, factor, first, out_ptr, residual_ptr, overall_ptr, bias_ptr, N, FIRST, SECOND,
                BN, SCALED, GATED, ACT, RESIDUAL, BIAS,
            )  # fmt: skip


@triton.jit
def _row_factor(x_ptr, eps, K: tl.constexpr, SOME: tl.constexpr):
    """One over the root mean square of x."""
    squares = tl.zeros((SOME,), tl.float32)
    for step in tl.static_range((K + SOME - 1) // SOME):
        at = step * SOME + tl.arange(0, SOME)
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        squares += x * x
    return tl.rsqrt(tl.sum(squares) / K + eps)


@triton.jit
def _store_rows(
    acc, factor, first, out_ptr, residual_ptr, overall_ptr, bias_ptr, N, FIRST, SECOND,
    BN: tl.constexpr, SCALED: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr,
    RESIDUAL: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Sums (SLABS, BN, 4) of one row."""
    at = first + tl.arange(0, BN // 2 if GATED else BN)
    sums = tl.sum(tl.sum(acc, 2), 0)[:, None] * factor
    out = _first_rows(
        sums, at, overall_ptr, bias_ptr, N, FIRST, SECOND, BN, SCALED, GATED, ACT, BIAS
    )
    out = tl.reshape(out, at.shape)
    if RESIDUAL:
        out += tl.load(residual_ptr + at, mask=at < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < N)


@triton.jit
def _unpack(
    words_ptr, scales_ptr, overall_ptr, table_ptr, out_ptr, N, FIRST, SECOND, FACTOR,
    K: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr, BLOCK: tl.constexpr,
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
    words = tl.load(words_ptr + place * (K // EACH) + columns[None, :], mask=inside & left, other=0)
    at = place * (K // BLOCK) + shared[None, :]
    raw = tl.load(scales_ptr + at, mask=inside & held, other=0)
    scale = (
        _scale(raw, FORMAT) * _overall(overall_ptr, rows, FIRST, SECOND, SCALED)[:, None] * FACTOR
    )
    by = _spread(scale, GROUP)
    if FORMAT == "nvfp4":
        planes = _planes(words, by, (), table_ptr, tl.float32, FORMAT, HIGH_FIRST, False)
        first, second = tl.join(planes[0], planes[1]), tl.join(planes[2], planes[3])
        out = tl.permute(tl.join(first, second), (0, 1, 4, 3, 2))  # of p its two bits, c
    else:
        codes = words.to(tl.int32)
        low = _value(codes & 15, table_ptr, FORMAT) * by
        high = _value(codes >> 4, table_ptr, FORMAT) * by
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
    share of the columns (`_packed_skinny`), with so many `registers` a lane; 0: a program for each
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
RESIDENT = 396  # programs of four warps and 168 registers that the device holds: three each
KEPT = 8  # steps whose columns of x stay in registers
SKINNY = Tiling(
    batch=8, rows=16, words=16, ahead=3, warps=4, slabs=4, programs=RESIDENT, registers=168
)
SHARE, MOST_SHARE = 4, 8  # steps, where columns are split, and where they cannot be
MOST_BATCH = 64  # rows of x of one program
MOST_ROWS = 128
# Of more than 16 rows of x. Fewer leave the device idle, and a dense weight is faster: of 64 rows o
# and down of Qwen3-4B take 18 and 37 microseconds then, not 29 and 72 (`lowbit_kernels`, one H200).
LEAST_PROGRAMS = 64


def plan_of(out: int, *, gated: bool, summed: bool) -> Plan:
    """How a product of one row is cut."""
    return PLANS[_kind_of(out, gated, summed or out < NARROW)]


def row_plan(out: int, columns: int, *, summed: bool) -> RowPlan:
    """How NVFP4's product of one row is cut; `out`: rows of the weight. Where the output adds to
    the residual stream its rows are few: a program each, with as much as it holds in flight."""
    slabs = 4
    while slabs < 16 and -(-columns // (LONG * WORD * slabs)) > KEPT:
        slabs *= 2
    steps = -(-columns // (LONG * WORD * slabs))
    tiles = -(-out // 16)
    if not summed:
        return RowPlan(16, slabs, 5, min(tiles, RESIDENT * 4 // slabs), keep=steps <= KEPT)
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
            programs = min(tiles, SKINNY.programs * SKINNY.slabs // (slabs * splits))
            return replace(SKINNY, warps=slabs, slabs=slabs, splits=splits, programs=programs)
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
    fast = _fast(x) and kinds == {torch.bfloat16}
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
        _packed_row[(min(tiles, plan.programs),)](
            *(x, *_operands(weight), out, *inputs),
            K=k,
            BN=plan.rows,
            SLABS=plan.slabs,
            AHEAD=plan.ahead,
            KEEP=plan.keep,
            ONCE=summed and plan.programs >= tiles,
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
    _packed_matvec[(triton.cdiv(n, plan.rows),)](
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
        _packed_skinny[(tiling.programs, tiling.splits)](
            *operands,
            K=k,
            BN=tiling.rows,
            SLABS=tiling.slabs,
            SPLITS=tiling.splits,
            AHEAD=tiling.ahead,
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
        **_kind(weight),
        num_warps=4,
    )
    return out


def _fast(x: Tensor) -> bool:
    """Whether the device has the instructions that decode (compute capability 8.6 and later)."""
    return x.is_cuda and _capability(x.device) >= (8, 6)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _bounded(registers: int) -> dict:
    return {"maxnreg": registers} if registers else {}


def _operands(weight: PackedMatrix, half: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Words of codes, scales, what they are multiplied by, and a table: the values in float32, or
    where they are looked up in `half` as `_words`. Raises ValueError for NVFP4 whose codes lie as a
    file has them."""
    if weight.format == "nvfp4" and not weight.laid:
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
