"""Products of one row with weights whose codes are looked up (NF4, INT4), by multiply-adds.

Contract. `packed_matvec` is what `packed.matvec` launches for them. A lane makes the columns of x
ready that its codes meet, with a power of 2 for each 16, and nobody waits for the largest of a
whole row; codes and x are multiplied and added in pairs of float16.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.packed_codes import overall_of, picked, value_of
from ember.backends.cuda.products import activated


def looked_up(high_first: bool) -> str:
    """Those of another format, upper and lower bytes from a table in $10 … $17 (see `_words`)."""
    even, odd = (1, 0) if high_first else (0, 1)
    text = ""
    for n, four in enumerate(picked("w", {"u": (10, 11, 12, 13), "k": (14, 15, 16, 17)})):
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


LOW_DOT, HIGH_DOT = (tl.constexpr(_dot_of(looked_up(high))) for high in (False, True))


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
def _words_of_table(table_ptr, BW: tl.constexpr, FAST: tl.constexpr):
    """What codes are looked up in, (1, BW) each. Lanes take one of two copies: words that are known
    to be the same for a warp would be moved to where they are needed at each use."""
    words = ()
    if FAST:
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
            dots += value_of(((longs >> (4 * j)) & 15).to(tl.int32), table_ptr, FORMAT) * x[j]
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
    # A hint that they are read once would cost two instructions each.
    longs = tl.load(longs_ptr + (rows * (K // 16))[:, None] + columns, mask=mask, other=0)
    blocks = (rows * (K // BLOCK))[:, None] + columns // (BLOCK // 16)
    return longs, tl.load(scales_ptr + blocks, mask=mask, other=0)


@triton.jit
def packed_matvec(
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
    words = _words_of_table(table_ptr, BW, FAST)
    squares = tl.zeros((1, BW), tl.float32)
    acc = tl.zeros((BN, BW), tl.float32)
    up_acc = tl.zeros((BN, BW), tl.float32)
    for step in tl.static_range(STEPS):
        at = step * BW + tl.multiple_of(tl.arange(0, BW), 1)[None, :]
        x, scale, more = _columns(x_ptr, norm_ptr, at, at < K // 16, HIGH_FIRST, NORM, FAST)
        squares += more
        longs, raw = tiles[0]
        tiles = tiles[1:]
        acc += _dots(longs, x, words, table_ptr, FORMAT, HIGH_FIRST, FAST) * (raw * scale)
        if GATED:
            longs, raw = up_tiles[0]
            up_tiles = up_tiles[1:]
            up_acc += _dots(longs, x, words, table_ptr, FORMAT, HIGH_FIRST, FAST) * (raw * scale)
        if step + AHEAD < STEPS:
            new = _long_tile(step + AHEAD, longs_ptr, scales_ptr, rows, there, K, BW, BLOCK)
            tiles = tiles + (new,)
            if GATED:
                new = _long_tile(step + AHEAD, longs_ptr, scales_ptr, rows + N, there, K, BW, BLOCK)
                up_tiles = up_tiles + (new,)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares) / K + eps)
    out = tl.sum(acc, 1) * factor * overall_of(overall_ptr, rows, FIRST, SECOND, SCALED)
    up = tl.sum(up_acc, 1) * factor * overall_of(overall_ptr, rows + N, FIRST, SECOND, SCALED)
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
