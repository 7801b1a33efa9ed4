"""4-bit codes and their scales as numbers in registers, for CUDA's kernels.

Contract. `planes_of` makes of words of eight codes and their blocks' scales four planes of two
neighbours each, in bfloat16 by instructions of the device where FAST, else in any type by what
Triton has; other functions of Triton here are what these and more than one kernel are made of.

What decides the speed of NVFP4 is instructions per weight, logic and conversions most of all, for
these run at half the rate of the others. So the bits of a word's eight codes lie (`lay` of
`ember.model.packed`) so that a shift and a mask, of one plane also an exclusive or, make two
neighbours bfloat16: `PAIRS`. NF4's values follow no formula: they are picked byte by byte, four at
a time, from a table in registers, at about 6 instructions a weight.

E2M1's bits, as exponent and mantissa of a wider float, are too small: 2**126 in bfloat16 and
float32; in E4M3 it is 2**120. What they meet is as much too large before (a scale, or x), or small
numbers would drown among the denormals.
"""

import triton
import triton.language as tl

E4M3 = tl.constexpr(2.0**120)
E2M1 = tl.constexpr(2.0**126)
HALF_REST = tl.constexpr(2.0**7)  # of codes times scales in bfloat16, see PAIRS
RAISE = tl.constexpr(2.0**96)


def picked(word: str, tables: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """What picks bytes of a word's codes 0 … 3, and then of 4 … 7, by name from tables of 16: from
    the half of each in which a code is."""
    text = "prmt.b32 m, 0x8000, 0, t;"  # 255 where a code is 8 or more
    for name, (a, b, c, d) in tables.items():
        text += f"prmt.b32 {name}, ${a}, ${b}, s; prmt.b32 r, ${c}, ${d}, s;"
        text += f"lop3.b32 {name}, m, r, {name}, 0xCA;"
    first = f"shr.b32 t, {word}, 3; lop3.b32 t, t, 0x11111111, 0x88888888, 0xEA;"
    first += f"and.b32 s, {word}, 0x77777777;"
    return first + text, "shr.b32 t, t, 16; shr.b32 s, s, 16;" + text


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
    for n, four in enumerate(picked("$4", tables)):
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


@triton.jit
def scale_of(raw, FORMAT: tl.constexpr):
    """A block's scale in float32, of the bits of E4M3 (never negative) or as it is."""
    if FORMAT == "nvfp4":
        return (raw.to(tl.int32) << 20).to(tl.float32, bitcast=True) * E4M3
    else:
        return raw


@triton.jit
def value_of(code, table_ptr, FORMAT: tl.constexpr):
    """float32 of codes 0 … 15 in int32."""
    if FORMAT == "int4":
        return (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0  # 2**23 + 8
    else:
        return tl.load(table_ptr + code)


@triton.jit
def words_apart(words, TILED: tl.constexpr):
    """How far words of a row lie from its first; TILED: of `ember.model.packed.TILE`."""
    if TILED:
        return words // 16 * 128 + words % 16
    else:
        return words


@triton.jit
def overall_of(overall_ptr, rows, FIRST, SECOND, SCALED: tl.constexpr):
    """Of each row's part."""
    factor = tl.full(rows.shape, 1.0, tl.float32)
    if SCALED:
        part = (rows >= FIRST).to(tl.int32) + (rows >= SECOND).to(tl.int32)
        factor = tl.load(overall_ptr + part)
    return factor


@triton.jit
def even_and_odd(x):
    """Elements 0, 2, … and 1, 3, … of the last dimension."""
    return tl.split(tl.reshape(x, x.shape[:-1] + (x.shape[-1] // 2, 2)))


@triton.jit
def four_of(x):
    """Elements 0, 1, 2 and 3 of the last dimension (…, 4)."""
    even, odd = even_and_odd(x)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def two_of(v):
    """The bfloat16 in the halves of 32 bits, (…, 2)."""
    low = (v & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, (v >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True))


@triton.jit
def twos_of(four):
    """The same of four."""
    return two_of(four[0]), two_of(four[1]), two_of(four[2]), two_of(four[3])


@triton.jit
def scales_for(raw, FORMAT: tl.constexpr, FAST: tl.constexpr):
    """Blocks' scales as `planes_of` takes them."""
    if FAST and FORMAT == "nvfp4":
        return tl.inline_asm_elementwise(
            SCALE, "=r,r", [raw.to(tl.int32)], dtype=tl.int32, is_pure=True, pack=1
        )
    elif FAST:
        return raw.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        return scale_of(raw, FORMAT)


@triton.jit
def laid_pair(words, p: tl.constexpr):
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
def unscaled_planes(words, FAST: tl.constexpr):
    """Four planes (…, 2) of words as `lay` puts them, without scales: float32, or where FAST
    bfloat16, 2**126 too small."""
    if FAST:
        return twos_of(
            tl.inline_asm_elementwise(
                PAIRS, "=&r,=&r,=&r,=&r,r", [words], dtype=(tl.int32,) * 4, is_pure=True, pack=1
            )
        )
    else:
        return laid_pair(words, 0), laid_pair(words, 1), laid_pair(words, 2), laid_pair(words, 3)


@triton.jit
def _nibbles(
    words, table_ptr, p: tl.constexpr, FORMAT: tl.constexpr, HIGH_FIRST: tl.constexpr
):  # fmt: skip
    """float32 of codes 2 p and 2 p + 1 (…, 2) of words of nibbles."""
    low = value_of((words >> 8 * p) & 15, table_ptr, FORMAT)
    high = value_of((words >> 8 * p + 4) & 15, table_ptr, FORMAT)
    return tl.join(high, low) if HIGH_FIRST else tl.join(low, high)


@triton.jit
def planes_of(
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
        return twos_of(four)
    else:
        planes = ()
        for p in tl.static_range(4):
            if FORMAT == "nvfp4":
                pair = laid_pair(words, p)
            else:
                pair = _nibbles(words, table_ptr, p, FORMAT, HIGH_FIRST)
            planes = planes + ((pair * tl.expand_dims(scales, -1)).to(KIND),)
        return planes


@triton.jit
def spread(scales, TIMES: tl.constexpr):
    """(…, B) as (…, B TIMES), each so often."""
    LINES: tl.constexpr = scales.shape[:-1]
    BLOCKS: tl.constexpr = scales.shape[-1]
    wide = tl.broadcast_to(tl.expand_dims(scales, -1), LINES + (BLOCKS, TIMES))
    return tl.reshape(wide, LINES + (BLOCKS * TIMES,))


@triton.jit
def store_products(out_ptr, out, rows, batch, split, M, N):
    """Products (rows of the weight, rows of x)."""
    spots = (split * M + batch).to(tl.int64)[None, :] * N + rows[:, None]
    there = (batch < M)[None, :] & (rows < N)[:, None]
    tl.store(out_ptr + spots, out.to(out_ptr.dtype.element_ty), mask=there)
