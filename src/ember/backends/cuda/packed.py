"""Products with 4-bit weights: codes and scales become numbers in registers (W4A16).

Contract. What `products` computes with dense weights, for a `PackedMatrix`: `matvec` one row of x
by multiply-adds, `wide` more by tensor cores; `dense` writes the weight itself, for the library's
products of many rows. Sums are float32; an overall scale is applied to them, before anything is
rounded to a half format.

What decides the speed of NVFP4 is instructions per weight (compiled code for Hopper has 4 to 5.5
for one row and 4 for more), logic and conversions most of all, and warps enough to issue them. So
codes are decoded where they lie, two or four in a register: the codes at place j of all words meet
the numbers at place j of x, and nothing is put in order. A lane of `matvec` makes the columns of x
ready that its codes meet, with a power of 2 for each 16, and nobody waits for the largest of a
whole row; `wide` gives each warp columns of its own where x has few rows. Up to 8 rows of x stay in
registers while programs go through rows of an NVFP4 weight, which is read into the registers from
which tensor cores take it and is on its way before x is there.

In the order of places x (M, K) lies as (8, G, M, 16): the numbers at place j of 16 words after each
other, then those of the next row.

NF4's values follow no formula: they are picked byte by byte, four at a time, from a table in
registers, at about 6 instructions a weight; loading each took five times as long as NVFP4. INT4's
are picked so in `matvec`.

E2M1's bits, as exponent and mantissa of a wider float, are too small: 2**126 in bfloat16 and
float32; in E4M3 it is 2**120. They are multiplied with what is as much too large before they meet
x, or small numbers would drown among the denormals.
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
from ember.backends.cuda.products import FEW_ROWS, RUN, activated, spot_of
from ember.model.packed import PackedMatrix, values_of

WORD = 8  # codes of 32 bits
LONG = 16  # codes of 64 bits
E4M3 = tl.constexpr(2.0**120)
E2M1 = tl.constexpr(2.0**126)
HALF_REST = tl.constexpr(2.0**7)  # of codes times scales in bfloat16, see PLANES
FLOAT16_REST = tl.constexpr(2.0**6)  # in float16, see SCALED_HALVES
# Eight codes of the word w as float16, (0, 2), (1, 3), (4, 6), (5, 7) in a0 … a3: the sign and the
# rest are set apart, as E4M3 has them 2**6 too small, four at a time, and the device converts that.
HALVES = """
shl.b32 t, w, 4; shl.b32 u, w, 2; and.b32 u, u, 0x1C1C1C1C; lop3.b32 t, t, 0x80808080, u, 0xEA;
shr.b32 u, w, 2; and.b32 u, u, 0x1C1C1C1C; lop3.b32 u, w, 0x80808080, u, 0xEA;
mov.b32 {l, h}, t; cvt.rn.f16x2.e4m3x2 a0, l; cvt.rn.f16x2.e4m3x2 a2, h;
mov.b32 {l, h}, u; cvt.rn.f16x2.e4m3x2 a1, l; cvt.rn.f16x2.e4m3x2 a3, h;
"""


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


NVFP4_DOT = tl.constexpr(_dot_of(HALVES))
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
# An E4M3 scale ($1) times 2**119 in bfloat16, in two steps: no constant is that large.
SCALE = tl.constexpr("""
{
.reg .b32 s, t, z;
mov.b32 z, 0x80008000;
shl.b32 s, $1, 4;
mov.b32 t, 0x7F007F00;
fma.rn.bf16x2 s, s, t, z;
mov.b32 t, 0x77807780;
fma.rn.bf16x2 $0, s, t, z;
}
""")
PLACED = """
%s; %s; and.b32 u, u, 0x01C001C0; lop3.b32 $%d, t, 0x80008000, u, 0xEA;
fma.rn.bf16x2 $%d, $%d, s, z;
"""
SHIFTS = (
    ("shl.b32 t, {}, 12", "shl.b32 u, {}, 6"),
    ("shl.b32 t, {}, 8", "shl.b32 u, {}, 2"),
    ("shl.b32 t, {}, 4", "shr.b32 u, {}, 2"),
    ("mov.b32 t, {}", "shr.b32 u, {}, 6"),
)


def _planes_of(register: str, first: int) -> str:
    """Four planes of two words' low or high halves."""
    return "".join(
        PLACED % (*(shift.format(register) for shift in shifts), *[first + plane] * 3)
        for plane, shifts in enumerate(SHIFTS)
    )


# Code j of two words ($8, $9), each times its own scale ($10, $11), is plane j ($0 … $7), in
# bfloat16 2**7 too small. Which two words these are is the compiler's choice.
PLANES = tl.constexpr(
    "{.reg .b32 l, h, t, u, s, z; mov.b32 z, 0x80008000; prmt.b32 s, $10, $11, 0x5410;"
    "prmt.b32 l, $8, $9, 0x5410; prmt.b32 h, $8, $9, 0x7632;"
    f"{_planes_of('l', 0)}{_planes_of('h', 4)}}}"
)


def _planes_looked_up() -> str:
    """The same by a table in $12, $14 … $26 (see `_words`), with scales in bfloat16."""
    text = "{.reg .b32 t, s, m, r, u, k, by, z, a<4>, b<4>; mov.b32 z, 0x80008000;"
    text += "prmt.b32 by, $10, $11, 0x5410;"
    tables = {"u": (12, 14, 16, 18), "k": (20, 22, 24, 26)}
    for word, name in (("$8", "a"), ("$9", "b")):
        for n, four in enumerate(_picked(word, tables)):
            text += f"{four} prmt.b32 {name}{2 * n}, k, u, 0x5140;"
            text += f"prmt.b32 {name}{2 * n + 1}, k, u, 0x7362;"
    for plane in range(8):
        half = "0x7632" if plane % 2 else "0x5410"
        text += f"prmt.b32 ${plane}, a{plane // 2}, b{plane // 2}, {half};"
        text += f"fma.rn.bf16x2 ${plane}, ${plane}, by, z;"
    return text + "}"


TABLE_PLANES = tl.constexpr(_planes_looked_up())


def _scaled_halves() -> str:
    """In float16, codes 0 … 7 ($0 … $7) of two words ($8, $9) times their scales ($10, $11)."""
    text = "{.reg .b32 t, u, w, s; .reg .b16 l, h; prmt.b32 s, $10, $11, 0x0040;"
    text += "mov.b32 {l, h}, s; cvt.rn.f16x2.e4m3x2 s, l;"
    for first, picked in ((0, "0x5140"), (4, "0x7362")):
        halves = HALVES
        for n in range(4):
            halves = halves.replace(f"a{n},", f"${first + n},")
        text += f"prmt.b32 w, $8, $9, {picked};{halves}"
        text += "".join(f"mul.rn.f16x2 ${n}, ${n}, s;" for n in range(first, first + 4))
    return text + "}"


SCALED_HALVES = tl.constexpr(_scaled_halves())


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
        return bits.to(tl.float32, bitcast=True) * E2M1
    elif FORMAT == "int4":
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
def _eight(x, HIGH_FIRST: tl.constexpr):
    """Columns 0 … 7 of x (…, 8), each (…), in the order of the nibbles."""
    even, odd = _halves(x)
    if HIGH_FIRST:
        even, odd = odd, even
    a, c = _halves(even)  # 0 and 4, 2 and 6
    b, d = _halves(odd)
    x0, x4 = tl.split(a)
    x1, x5 = tl.split(b)
    x2, x6 = tl.split(c)
    x3, x7 = tl.split(d)
    return x0, x1, x2, x3, x4, x5, x6, x7


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
    if FAST and FORMAT != "nvfp4":
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
        looked_up: tl.constexpr = HIGH_DOT if HIGH_FIRST else LOW_DOT
        return tl.inline_asm_elementwise(
            NVFP4_DOT if FORMAT == "nvfp4" else looked_up,
            "=f,l,r,r,r,r,r,r,r,r" + ("" if FORMAT == "nvfp4" else ",r,r,r,r,r,r,r,r"),
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
def _scales(raw, KIND: tl.constexpr, FORMAT: tl.constexpr, FAST: tl.constexpr):
    """Blocks' scales as `_planes` takes them."""
    if FAST and tl.float16 == KIND:
        return raw.to(tl.int32)
    elif FAST and FORMAT == "nvfp4":
        return tl.inline_asm_elementwise(
            SCALE, "=r,r", [raw.to(tl.int32)], dtype=tl.int32, is_pure=True, pack=1
        )
    elif FAST:
        return raw.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        return _scale(raw, FORMAT)


@triton.jit
def _planes(
    words, scales, table, table_ptr, KIND: tl.constexpr, FORMAT: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """Eight planes of words (…, BW) in the type KIND, plane j of the words' nibbles j times their
    scales (…, BW); where FAST bfloat16, 2**7 too small."""
    LINES: tl.constexpr = words.shape[:-1]
    BW: tl.constexpr = words.shape[-1]
    if FAST and tl.float16 == KIND:
        return tl.inline_asm_elementwise(
            SCALED_HALVES,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r",
            (words, scales),
            dtype=(tl.float16,) * 8,
            is_pure=True,
            pack=2,
        )
    elif FAST:
        of_table = ()
        for n in tl.static_range(len(table)):
            of_table = of_table + (tl.reshape(table[n], (1,) * len(LINES) + (BW,)),)
        return tl.inline_asm_elementwise(
            PLANES if FORMAT == "nvfp4" else TABLE_PLANES,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r" + ",r,r" * len(table),
            (words, scales) + of_table,
            dtype=(tl.bfloat16,) * 8,
            is_pure=True,
            pack=2,
        )
    else:
        return (
            (_value(words & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 4) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 8) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 12) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 16) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 20) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 24) & 15, table_ptr, FORMAT) * scales).to(KIND),
            (_value((words >> 28) & 15, table_ptr, FORMAT) * scales).to(KIND),
        )


@triton.jit
def _decoded(
    words, raw, table, table_ptr, KIND: tl.constexpr, GROUP: tl.constexpr, FORMAT: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """`_planes` of words (…, BW) and their scales (…, BW / GROUP)."""
    LINES: tl.constexpr = words.shape[:-1]
    BW: tl.constexpr = words.shape[-1]
    scales = tl.expand_dims(_scales(raw, KIND, FORMAT, FAST), -1)
    scales = tl.reshape(tl.broadcast_to(scales, LINES + (BW // GROUP, GROUP)), words.shape)
    return _planes(words, scales, table, table_ptr, KIND, FORMAT, FAST)


@triton.jit
def _store(out_ptr, out, rows, batch, split, M, N, PLACES: tl.constexpr):
    """Products (rows of the weight, rows of x), which lie in the order of places where PLACES."""
    if PLACES:
        spots = spot_of((rows % 8)[:, None], (rows // 8)[:, None], batch[None, :], M, N // 8)
    else:
        spots = (split * M + batch).to(tl.int64)[None, :] * N + rows[:, None]
    there = (batch < M)[None, :] & (rows < N)[:, None]
    tl.store(out_ptr + spots, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _packed_wide(
    x_ptr,  # (M, K), or in the order of places where PLACED
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
    PLACED: tl.constexpr,
    PLACES: tl.constexpr,  # out is to lie in the order of places
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
    elements = slabs * (8 * BW) + tl.arange(0, 8 * BW)[None, None, :]
    inputs = x_ptr + batch[None, :, None] * K + elements
    if PDL:
        gdc_wait()
    table = _words_of_table(table_ptr, BW, FORMAT, FAST)
    acc = _flat(tl.zeros((SLABS, BN, BM), tl.float32))
    begin = split * EACH
    for step in tl.range(begin, tl.minimum(begin + EACH, STEPS), num_stages=STAGES):
        left, held, within = inside, inside, present
        if WORDS % WIDE != 0:
            left = inside & (columns < WORDS - step * WIDE)
            held = inside & (shared < BLOCKS - step * (WIDE // GROUP))
            if PLACED:
                within = present & (columns < WORDS - step * WIDE)
            else:
                within = present & (elements < K - 8 * step * WIDE)
        if PLACED:
            xs = ()
            for j in tl.static_range(8):
                place = j ^ 1 if HIGH_FIRST else j
                spot = spot_of(place, columns + step * WIDE, batch[None, :, None], M, WORDS)
                xs = xs + (_flat(tl.load(x_ptr + spot, mask=within, other=0.0)),)
        else:
            x = _flat(tl.load(inputs + 8 * step * WIDE, mask=within, other=0.0))
            xs = _eight(tl.reshape(x, x.shape[:-1] + (BW, 8)), HIGH_FIRST)
        some = _flat(_read(words + step * WIDE, left))
        raw = _flat(_read(scales + step * (WIDE // GROUP), held))
        planes = _decoded(some, raw, table, table_ptr, KIND, GROUP, FORMAT, FAST)
        for j in tl.static_range(8):
            acc = tl.dot(planes[j], _turned(xs[j]), acc, input_precision="ieee")
    if SLABS > 1:
        acc = tl.sum(acc, 0)
    if PDL:
        gdc_launch_dependents()
    factor = _overall(overall_ptr, part, FIRST, SECOND, SCALED)
    if FAST:
        factor *= FLOAT16_REST if tl.float16 == KIND else HALF_REST
    acc *= factor[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + part, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, TALL, BM)), (1, 2, 0)))
        acc = activated(gate, ACT) * up
        rows = tl.program_id(1) * TALL + tl.arange(0, TALL)
    else:
        acc = activated(acc, ACT)
    _store(out_ptr, acc, rows, batch, split, M, N, PLACES)


@triton.jit
def _words_and_scales(
    words, scales, there, columns, pairs, step: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """A step's words (8, SLABS, LINES, 16) and the scales of their blocks, two in 16 bits."""
    left, held = there, there
    if not EVEN:
        left = there & (columns < K // 8 - step * WIDE)
        held = there & (pairs < K // 32 - step * (WIDE // 4))
    some = tl.load(words + step * WIDE, mask=left, other=0)
    return some, tl.load(scales + step * (WIDE // 4), mask=held, other=0)


@triton.jit
def _planes_of_lanes(words, pairs, table_ptr, KIND: tl.constexpr, FAST: tl.constexpr):
    """`_decoded` of words (8, SLABS, LINES, 16) as the lanes hold them, (SLABS, 8 LINES, 16)."""
    SLABS: tl.constexpr = words.shape[1]
    LINES: tl.constexpr = words.shape[2]
    words = tl.permute(tl.reshape(words, (8, SLABS, LINES, 4, 2, 2)), (1, 2, 0, 4, 3, 5))
    words = tl.reshape(words, (SLABS, 8 * LINES, 16))
    # As many as words from the start: to be spread out later they would be moved.
    raw = (pairs.to(tl.int32)[:, :, :, :, None] >> 8 * tl.arange(0, 2)) & 255
    scales = _scales(raw, KIND, "nvfp4", FAST)[:, :, :, :, :, None]
    scales = tl.broadcast_to(scales, (8, SLABS, LINES, 4, 2, 2))
    scales = tl.reshape(tl.permute(scales, (1, 2, 0, 4, 3, 5)), (SLABS, 8 * LINES, 16))
    return _planes(words, scales, (), table_ptr, KIND, "nvfp4", FAST)


@triton.jit
def _packed_skinny(
    x_ptr,  # (8, G, M, 16), in the order of places
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / 32) int16: of two blocks of 16 each
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
    PLACES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Up to 8 rows of x, which stay in registers. A lane reads the words that tensor cores want of
    it, four after each other; so word 4 t + 2 h + b of a RUN is column 8 h + 2 t + b of a product.
    """
    if PDL:
        gdc_launch_dependents()
    KIND: tl.constexpr = x_ptr.dtype.element_ty
    WORDS: tl.constexpr = K // 8
    WIDE: tl.constexpr = 16 * SLABS
    STEPS: tl.constexpr = ((WORDS + WIDE - 1) // WIDE + SPLITS - 1) // SPLITS
    EVEN: tl.constexpr = STEPS * SPLITS * WIDE == WORDS
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    BOTH: tl.constexpr = 2 if GATED else 1
    TALL: tl.constexpr = BN // BOTH
    LINES: tl.constexpr = BN // 8
    split = tl.program_id(1)
    slab = tl.arange(0, SLABS)
    begin = split * (STEPS * WIDE)
    group = begin + 16 * slab
    eights = tl.arange(0, LINES)[None, None, :, None]  # of rows, in turns of gate and of up
    rows = tl.program_id(0) * TALL + 8 * (eights // BOTH) + tl.arange(0, 8)[:, None, None, None]
    part = rows + eights % BOTH * N
    # Lanes are laid along the last dimension, then the first, warps along the second: in the order
    # in which numbers are said to lie together, whatever the compiler makes of equal dimensions.
    # Only the last is read at once, of scales not even that.
    apart = tl.multiple_of(tl.arange(0, 4), 1)
    columns = group[None, :, None, None] + tl.arange(0, 16)[None, None, None, :]
    pairs = group[None, :, None, None] // 4 + apart[None, None, None, :]
    words = tl.max_contiguous(words_ptr + part * WORDS + columns, (4, 2, 1, 8))
    scales = tl.max_contiguous(scales_ptr + part * (WORDS // 4) + pairs, (4, 2, 1, 8))
    there = rows < N
    tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + _words_and_scales(words, scales, there, columns, pairs, step, K, WIDE, EVEN)
    if PDL:
        gdc_wait()
    batch = tl.multiple_of(tl.arange(0, 8), 1)
    four = tl.arange(0, 4)
    word = group[None, None, :, None] + 4 * four[:, None, None, None] + four[None, None, None, :]
    xs = ()
    for step in tl.static_range(STEPS):
        for j in tl.static_range(8):
            # `spot_of`, so written that the compiler sees four words in a row.
            run = j * ((WORDS + RUN - 1) // RUN) + begin // RUN + step * SLABS
            spots = (run + slab[None, None, :, None]) * M + batch[None, :, None, None]
            spots = RUN * spots + 4 * four[:, None, None, None] + four[None, None, None, :]
            inside = (batch < M)[None, :, None, None]
            if not EVEN:
                inside = inside & (word + step * WIDE < WORDS)
            x = tl.max_contiguous(x_ptr + spots, (4, 2, 1, 8))
            x = tl.load(x, mask=inside, other=0.0)
            x = tl.permute(tl.reshape(x, (4, 8, SLABS, 2, 2)), (2, 3, 0, 4, 1))
            xs = xs + (tl.reshape(x, (SLABS, 16, 8)),)
    further = tl.num_programs(0) * TALL
    for first in tl.range(tl.program_id(0) * TALL, N, further, num_stages=1):
        acc = tl.zeros((SLABS, BN, 8), tl.float32)
        for step in tl.static_range(STEPS):
            planes = _planes_of_lanes(tiles[0], tiles[1], table_ptr, KIND, FAST)
            for j in tl.static_range(8):
                acc = tl.dot(planes[j], xs[8 * step + j], acc, input_precision="ieee")
            if step + EARLY == STEPS:
                words += further * WORDS
                scales += further * (WORDS // 4)
                rows += further
                there = rows < N
            tiles = tiles[2:] + _words_and_scales(
                words, scales, there, columns, pairs, (step + EARLY) % STEPS, K, WIDE, EVEN
            )
        acc = tl.sum(acc, 0)
        if FAST:
            acc *= FLOAT16_REST if tl.float16 == KIND else HALF_REST
        out = tl.reshape(acc, (BN // 8 // BOTH, BOTH, 8, 8))
        at = first + tl.arange(0, TALL)
        if GATED:
            out, up = tl.split(tl.permute(out, (0, 2, 3, 1)))
            up = tl.reshape(up, (TALL, 8))
            up *= _overall(overall_ptr, at + N, FIRST, SECOND, SCALED)[:, None]
            if BIAS:
                up += tl.load(bias_ptr + N + at, mask=at < N, other=0.0).to(tl.float32)[:, None]
        out = tl.reshape(out, (TALL, 8))
        out *= _overall(overall_ptr, at, FIRST, SECOND, SCALED)[:, None]
        if BIAS:
            out += tl.load(bias_ptr + at, mask=at < N, other=0.0).to(tl.float32)[:, None]
        out = activated(out, ACT)
        if GATED:
            out *= up
        _store(out_ptr, out, at, batch, split, M, N, PLACES)


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
    codes = tl.load(codes_ptr + place * (K // 2) + columns[None, :], mask=left, other=0)
    raw = tl.load(scales_ptr + place * (K // BLOCK) + shared[None, :], mask=held, other=0)
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
    """How a product of one row is cut: `rows` of the weight, `longs` of 16 codes at a time, `ahead`
    such tiles in flight."""

    rows: int
    longs: int
    ahead: int
    warps: int


@dataclass(frozen=True)
class Tiling:
    """How a product of more rows is cut: tiles of `rows` of the weight, `words` of 8 codes at a
    time for each of `slabs`, `ahead` in flight, for up to `batch` rows of x; `splits` programs
    share the columns. `programs`: that go through the rows while x stays in registers, for each
    share of the columns (`_packed_skinny`); 0: a program for each tile."""

    batch: int
    rows: int
    words: int
    ahead: int
    warps: int
    slabs: int = 1
    splits: int = 1
    programs: int = 0


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
    "summed": ((32, 16, 3, 2, 2), (128, 32, 2, 8, 1)),
    "plain": ((16, 16, 3, 2, 2), (64, 32, 3, 4, 1)),
    "large": ((32, 16, 3, 2, 2), (128, 16, 3, 4, 1)),
}
NARROW, LARGE = 4096, 16384  # rows of a weight
FROM_ROWS = 2  # from so many rows of x on tensor cores multiply; 1: always
PROGRAMS = (528, 264)  # that share columns: four or two of a multiprocessor each
# With x in registers: tiles, how many for each share of the columns, and programs, as many as fit.
SKINNY = Tiling(batch=8, rows=16, words=16, ahead=3, warps=4, slabs=4, programs=396)
SHARE, MOST_SHARE = 4, 8  # where columns are split, and where they cannot be
MOST_BATCH = 64  # rows of x of one program
MOST_ROWS = 128
# Of more than 16 rows of x. Fewer leave the device idle, and a dense weight is faster: of 64 rows o
# and down of Qwen3-4B take 18 and 37 microseconds then, not 29 and 72 (`lowbit_kernels`, one H200).
LEAST_PROGRAMS = 64


def plan_of(out: int, *, gated: bool, summed: bool) -> Plan:
    """How a product of one row is cut."""
    return PLANS[_kind_of(out, gated, summed or out < NARROW)]


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
    tall, words, ahead, warps, slabs = TILES[_kind_of(out, gated, summed)][many]
    word = slabs * (WORD * batch * size + tall * 5)  # its bytes in a tile
    while words > 8 and (ahead + 1) * words * word > shared:
        words //= 2
    programs = -(-out // tall) * -(-rows // batch)
    steps = -(-columns // (WORD * words * slabs))
    splits = min(steps, max(1, PROGRAMS[many] // programs)) if summed else 1
    return Tiling(batch, tall, words, ahead, warps, slabs, splits)


def skinny_tiling(weight: PackedMatrix | Tensor, *, summed: bool) -> Tiling | None:
    """How a product of up to 8 rows in the order of places is cut where x stays in registers.
    None: of another format, or its columns are too many for them."""
    out, columns = weight.shape
    if getattr(weight, "format", None) != "nvfp4" or columns % 32:
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
    n, k = out.shape[1], weight.shape[1]
    fast = has_fp8(x.device)
    fast = fast and {x.dtype, x.dtype if norm is None else norm.dtype} == {torch.bfloat16}
    codes, *others = _operands(weight, torch.float16 if fast else None)
    if plan is None:
        plan = plan_of(n, gated=gated, summed=summed) if fast else PLANS["slow"]
    _packed_matvec[(triton.cdiv(n, plan.rows),)](
        *(x, codes.view(torch.int64), *others, out),
        *(x if norm is None else norm, out if residual is None else residual),
        *(x if bias is None else bias, n, *_ends(weight), eps),
        K=k,
        BN=plan.rows,
        BW=min(plan.longs, triton.next_power_of_2(k // LONG)),
        AHEAD=plan.ahead,
        **_kind(weight),
        FAST=fast,
        NORM=norm is not None,
        GATED=gated,
        ACT=act,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        PDL=pdl,
        num_warps=plan.warps,
        num_stages=1,
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
    their sums; see `products.wide`. Either may lie in the order of places (8, G, M, 16): codes at
    place j of words meet numbers that lie together."""
    if tiling.splits > 1 and (gated or bias is not None or out.dtype != torch.float32):
        raise ValueError("sums of split columns are in float32, without gate and bias")
    placed = x.dim() == 4
    m, n, k = x.shape[2] if placed else len(x), len(weight) // (1 + gated), weight.shape[1]
    fast = x.is_cuda and x.dtype in _fast_kinds(weight.format, x.device)
    codes, *others = _operands(weight, x.dtype if fast else None)
    if tiling.programs:
        if not placed or m > FEW_ROWS or weight.format != "nvfp4":
            raise ValueError("up to 8 rows of x in the order of places stay in registers, of NVFP4")
        scales, *others = others
        _packed_skinny[(tiling.programs, tiling.splits)](
            *(x, codes.view(torch.int32), scales.view(torch.int16), *others, out),
            *(x if bias is None else bias, m, n, *_ends(weight)),
            K=k,
            BN=tiling.rows,
            SLABS=tiling.slabs,
            SPLITS=tiling.splits,
            AHEAD=tiling.ahead,
            SCALED=weight.overall is not None,
            FAST=fast,
            GATED=gated,
            ACT=act,
            BIAS=bias is not None,
            PLACES=out.dim() == 4,
            PDL=pdl,
            num_warps=tiling.warps,
            num_stages=1,
            **({"launch_pdl": True} if pdl else {}),
        )
        return out
    tall = triton.cdiv(len(weight), tiling.rows)
    _packed_wide[(triton.cdiv(m, tiling.batch), tall, tiling.splits)](
        *(x, codes.view(torch.int32), *others, out),
        *(x if bias is None else bias, m, n, *_ends(weight)),
        K=k,
        BM=tiling.batch,
        BN=tiling.rows,
        BW=max(tiling.words, weight.block // WORD),
        SLABS=tiling.slabs,
        SPLITS=tiling.splits,
        STAGES=tiling.ahead,
        **_kind(weight),
        FAST=fast,
        GATED=gated,
        ACT=act,
        BIAS=bias is not None,
        PLACED=placed,
        PLACES=out.dim() == 4,
        PDL=pdl,
        num_warps=tiling.warps,
        **({"launch_pdl": True} if pdl else {}),
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


def places_width(width: int) -> int:
    """Numbers of a row in the order of places, with those that nobody reads."""
    return -(-width // (RUN.value * WORD)) * RUN.value * WORD


def in_places(memory: Tensor, rows: int) -> Tensor:
    """The first of a memory (R, `places_width`) as rows in the order of places, (8, G, M, 16)."""
    width = memory.shape[1]
    return memory.view(-1)[: rows * width].view(WORD, -1, rows, RUN.value)


def to_places(x: Tensor, out: Tensor) -> None:
    """Puts x (M, K) in the order of places."""
    rows, width = x.shape
    words = F.pad(x.view(rows, width // WORD, WORD), (0, 0, 0, -(width // WORD) % RUN.value))
    out.copy_(words.view(rows, -1, RUN.value, WORD).permute(3, 1, 0, 2))


def of_places(x: Tensor, width: int) -> Tensor:
    """(M, K) of what lies in the order of places."""
    return x.permute(2, 1, 3, 0).reshape(x.shape[2], -1)[:, :width]


def _fast_kinds(format: str, device: torch.device) -> tuple[torch.dtype, ...]:
    """What instructions of the device decode to; INT4's values are computed as fast."""
    if format == "nvfp4" and has_fp8(device):
        return (torch.bfloat16, torch.float16)
    return (torch.bfloat16,) if format in ("nvfp4", "nf4") else ()


@functools.cache
def has_fp8(device: torch.device) -> bool:
    """Whether the device converts E4M3 (compute capability 8.9 and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _operands(weight: PackedMatrix, half: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Codes, scales, what they are multiplied by, and a table: the values in float32, or where they
    are looked up in `half` as `_words`."""
    of = weight.format, weight.codes.device
    table = _table(*of) if half is None else _words(*of, half)
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


@functools.cache
def _words(format: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2, 8) int32, twice the same: of the 16 values in a half format, as much too small as
    `HALVES` and `PLANES` are, the upper bytes in four words, then the lower ones."""
    rest = 2**6 if dtype == torch.float16 else HALF_REST.value
    halves = (values_of(format) / rest).to(dtype)
    words = halves.view(torch.uint8).view(16, 2).flip(1).T.contiguous().view(torch.int32)
    return words.flatten().repeat(2, 1).to(device)
