"""Products of up to 8 rows with an NVFP4 weight, which never passes through shared memory.

Contract. `packed_row` (one row, with what stands around it in a decoder) and `packed_skinny` (up to
8) are what `packed.matvec` and `packed.wide` launch. Weights are read into the registers from which
tensor cores take them and are on their way before x is there; x stays in registers while programs
go through rows of the weight.

Of one row each block of 16 has a column of its own in the products, so that codes meet x as they
are and a block's scale multiplies its sum: 1.8 instructions a weight, where multiply-adds in pairs
take 4 to 5. Of more rows scales multiply the codes.

A lane reads the words that tensor cores want of it, four after each other: columns 4 t + 2 b + c of
a product are word 4 t + 2 h + b, number 2 p + c of its pairs. Lanes are laid along the last
dimension of pointers, then the first, warps along the one of slabs: in the order in which numbers
are said to lie together (`max_contiguous`, which is lost on its way into a function), whatever the
compiler makes of equal dimensions.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.packed_codes import (
    E2M1,
    HALF_REST,
    NORMED_RAISED,
    RAISE,
    RAISED,
    TWO_SCALES,
    even_and_odd,
    four_of,
    overall_of,
    planes_of,
    scale_of,
    scales_for,
    spread,
    store_products,
    two_of,
    unscaled_planes,
)
from ember.backends.cuda.products import activated, read_once


@triton.jit
def _of_lanes(
    first, begin, N, K: tl.constexpr, BN: tl.constexpr, SLABS: tl.constexpr, BOTH: tl.constexpr,
    TILED: tl.constexpr,
):  # fmt: skip
    """Where words (8, SLABS, LINES, 16) lie, their rows and columns, and the same of their blocks'
    scales, two of which are one (8, LINES SLABS, 4)."""
    LINES: tl.constexpr = BN // 8
    eights = tl.arange(0, LINES)[None, None, :, None]  # of rows, in turns of gate and of up
    corner, line = first + 8 * (eights // BOTH), tl.arange(0, 8)[:, None, None, None]
    slabs, word = begin + 16 * tl.arange(0, SLABS)[None, :, None, None], tl.arange(0, 16)
    rows, columns = corner + line, slabs + word[None, None, None, :]
    words = (corner + eights % BOTH * N) * (K // 8) + word[None, None, None, :]
    if TILED:
        words += slabs * 8 + line * 16
    else:
        words += slabs + line * (K // 8)
    both = tl.arange(0, LINES * SLABS)[None, :, None]
    lines = first + 8 * (both // SLABS // BOTH) + tl.arange(0, 8)[:, None, None]
    part = lines + both // SLABS % BOTH * N
    apart = tl.multiple_of(tl.arange(0, 4), 1)  # not to be read at once
    pairs = begin // 4 + 4 * (both % SLABS) + apart[None, None, :]
    if K % 32 == 0:
        scales = part * (K // 32) + pairs
    else:
        scales = part * (K // 16) + 2 * pairs
    return words, rows, columns, scales, lines, pairs


@triton.jit
def _words_and_scales(
    words, rows, columns, scales, lines, pairs, N, step: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    """A step's words (8, SLABS, LINES, 16) and the scales of their blocks, two in 16 bits."""
    there, held = rows < N, lines < N
    if not EVEN:
        there = there & (columns < K // 8 - step * WIDE)
        held = held & (pairs < (K + 16) // 32 - step * (WIDE // 4))
    some = read_once(words + step * (WIDE * 8 if TILED else WIDE), there)
    if K % 32 == 0:
        return some, tl.load(scales + step * (WIDE // 4), mask=held, other=0)
    else:  # two in 16 bits would lie across
        first = tl.load(scales + step * (WIDE // 2), mask=held, other=0).to(tl.int32)
        held = held & (pairs < K // 32 - step * (WIDE // 4))
        second = tl.load(scales + (step * (WIDE // 2) + 1), mask=held, other=0).to(tl.int32)
        return some, (first | (second << 8)).to(tl.int16)


@triton.jit
def _moved(words, scales, rows, lines, by, K: tl.constexpr):
    """The places of a tile that lies `by` rows further on."""
    scales += by * (K // 32 if K % 32 == 0 else K // 16)
    return words + by * (K // 8), scales, rows + by, lines + by


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
    one = four_of(tl.permute(tl.reshape(one, (4, SLABS, 8, 4)), (1, 0, 2, 3)))
    two = four_of(tl.permute(tl.reshape(two, (4, SLABS, 8, 4)), (1, 0, 2, 3)))
    return (
        _tile_of_x(one[0], two[0], FAST), _tile_of_x(one[1], two[1], FAST),
        _tile_of_x(one[2], two[2], FAST), _tile_of_x(one[3], two[3], FAST),
    )  # fmt: skip


@triton.jit
def _tile_of_x(one, two, FAST: tl.constexpr):
    x = two_of(tl.join(one, two))  # SLABS, t, row, b, c
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
def _after_sums(
    at, overall_ptr, bias_ptr, N, FIRST, SECOND, SCALED: tl.constexpr, GATED: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """Overall scales and biases of rows `at` (TALL,), and where GATED of those of up. Loaded
    before their sums are there, so that nothing waits for them afterwards."""
    by = overall_of(overall_ptr, at, FIRST, SECOND, SCALED)
    up_by = overall_of(overall_ptr, at + N, FIRST, SECOND, SCALED and GATED)
    bias, up_bias = tl.zeros(at.shape, tl.float32), tl.zeros(at.shape, tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + at, mask=at < N, other=0.0).to(tl.float32)
        if GATED:
            up_bias = tl.load(bias_ptr + N + at, mask=at < N, other=0.0).to(tl.float32)
    return by, up_by, bias, up_bias


@triton.jit
def _first_rows(out, after, BN: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr):
    """Sums (BN, B) with what comes after them, (TALL, B); `after`: see `_after_sums`."""
    by, up_by, bias, up_bias = after
    BOTH: tl.constexpr = 2 if GATED else 1
    TALL: tl.constexpr = BN // BOTH
    COLUMNS: tl.constexpr = out.shape[1]
    out = tl.reshape(out, (BN // 8 // BOTH, BOTH, 8, COLUMNS))
    if GATED:
        out, up = tl.split(tl.permute(out, (0, 2, 3, 1)))
        up = tl.reshape(up, (TALL, COLUMNS)) * up_by[:, None] + up_bias[:, None]
    out = tl.reshape(out, (TALL, COLUMNS)) * by[:, None] + bias[:, None]
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
def packed_skinny(
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
    ONCE: tl.constexpr,  # there is a program for each tile
    TILED: tl.constexpr,  # how words lie
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
    own = tl.program_id(0) * TALL
    words, rows, columns, scales, lines, pairs = _of_lanes(own, begin, N, K, BN, SLABS, BOTH, TILED)
    words = tl.max_contiguous(words_ptr + words, (4, 2, 1, 8))
    if K % 32 == 0:
        scales_ptr = scales_ptr.to(tl.pointer_type(tl.int16))
    scales = tl.max_contiguous(scales_ptr + scales, (2, 1, 4))
    tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + _words_and_scales(
            words, rows, columns, scales, lines, pairs, N, step, K, WIDE, EVEN, TILED
        )
    row = tl.arange(0, 8 * SLABS)[None, :, None]  # of each slab
    spots = 4 * begin + 64 * (row // 8) + 16 * tl.arange(0, 4)[:, None, None]
    spots += tl.arange(0, 4)[None, None, :]
    row = row % 8
    x_pairs = x_ptr.to(tl.pointer_type(tl.int32)) + row * (K // 2) + spots
    x_pairs = tl.max_contiguous(x_pairs, (2, 1, 4))
    at = own + tl.arange(0, TALL)
    after = _after_sums(at, overall_ptr, bias_ptr, N, FIRST, SECOND, SCALED, GATED, BIAS)
    if PDL:
        gdc_wait()
    xs = ()
    for step in tl.static_range(STEPS):
        xs = xs + _x_of_rows(x_ptr, x_pairs, row, spots, begin, slab, step, M, K, WIDE, EVEN, FAST)
    batch = tl.arange(0, 8)
    further = TALL if ONCE else tl.num_programs(0) * TALL
    for first in tl.range(own, own + TALL if ONCE else N, further, num_stages=1):
        if not ONCE:
            at = first + tl.arange(0, TALL)
            after = _after_sums(at, overall_ptr, bias_ptr, N, FIRST, SECOND, SCALED, GATED, BIAS)
        # Of h = 0 and of 1: neither waits for the other.
        acc = tl.zeros((SLABS, BN, 8), tl.float32)
        other = tl.zeros((SLABS, BN, 8), tl.float32)
        for step in tl.static_range(STEPS):
            one, two = _sides(tiles[0])
            raw = _lines(tiles[1], SLABS).to(tl.int32)
            by = spread(scales_for(raw & 255, "nvfp4", FAST), 2)
            one = planes_of(one, by, (), table_ptr, KIND, "nvfp4", False, FAST)
            by = spread(scales_for((raw >> 8) & 255, "nvfp4", FAST), 2)
            two = planes_of(two, by, (), table_ptr, KIND, "nvfp4", False, FAST)
            for p in tl.static_range(4):
                a = tl.reshape(one[p], (SLABS, BN, 16))
                acc = tl.dot(a, xs[8 * step + p].to(KIND), acc, input_precision="ieee")
                b = tl.reshape(two[p], (SLABS, BN, 16))
                other = tl.dot(b, xs[8 * step + 4 + p].to(KIND), other, input_precision="ieee")
            if step + EARLY == STEPS:
                words, scales, rows, lines = _moved(words, scales, rows, lines, further, K)
            following = tiles[:2]  # where nothing follows
            if step + EARLY < STEPS or not ONCE:
                following = _words_and_scales(
                    words, rows, columns, scales, lines, pairs, N, (step + EARLY) % STEPS, K, WIDE,
                    EVEN, TILED,
                )  # fmt: skip
            tiles = tiles[2:] + following
        out = tl.sum(acc + other, 0)
        if FAST:
            out *= HALF_REST
        out = _first_rows(out, after, BN, GATED, ACT)
        store_products(out_ptr, out, at, batch, split, M, N)


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
        x = (x & -65536).to(tl.float32, bitcast=True)
        high = x * (by & -65536).to(tl.float32, bitcast=True)
        return ((_rounded(low) >> 16) & 0xFFFF) | (_rounded(high) & -65536)


@triton.jit
def _rounded(x):
    """Bits of float32 whose upper half is the nearest bfloat16 (the interpreter would cut off)."""
    bits = x.to(tl.int32, bitcast=True)
    return bits + 0x7FFF + ((bits >> 16) & 1)


@triton.jit
def _add_step(
    acc, words, pairs, xs, x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step: tl.constexpr,
    K: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, KEEP: tl.constexpr,
    NORM: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """acc (SLABS, BN, 4) and what a step adds: a block's sums are its own column's, multiplied by
    its scale (2**8 too small where FAST) in float32."""
    if KEEP:
        x = xs[4 * step : 4 * step + 4]
    else:
        x = _x_of_row(
            x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step, K, WIDE, EVEN, NORM, FAST
        )
    raw = _lines(pairs, words.shape[1]).to(tl.int32) & 0xFFFF
    SHAPE: tl.constexpr = (raw.shape[0], raw.shape[1])
    if FAST:
        scale, other = tl.inline_asm_elementwise(
            TWO_SCALES, "=f,=f,r", [raw], dtype=(tl.float32, tl.float32), is_pure=True, pack=1
        )
    else:
        scale, other = scale_of(raw & 255, "nvfp4"), scale_of(raw >> 8, "nvfp4")
    one, two = _sides(words)
    one, two = unscaled_planes(one, FAST), unscaled_planes(two, FAST)
    first = tl.zeros(SHAPE + (8,), tl.float32)
    second = tl.zeros(SHAPE + (8,), tl.float32)
    for p in tl.static_range(4):
        a = tl.reshape(one[p], SHAPE + (16,))
        first = tl.dot(a, x[p], first, input_precision="ieee")
        b = tl.reshape(two[p], SHAPE + (16,))
        second = tl.dot(b, x[p], second, input_precision="ieee")
    even, _ = even_and_odd(first)
    _, odd = even_and_odd(second)
    return acc + even * scale + odd * other


@triton.jit
def packed_row(
    x_ptr,  # (1, K)
    words_ptr,  # (N, K / 8) int32, or (2 N, K / 8) where GATED
    scales_ptr,  # (N, K / 16) uint8
    overall_ptr,  # (parts,)
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
    TILED: tl.constexpr,  # how words lie
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
    begin = tl.program_id(0) * TALL
    words, rows, columns, scales, lines, pairs = _of_lanes(begin, 0, N, K, BN, SLABS, BOTH, TILED)
    words = tl.max_contiguous(words_ptr + words, (4, 2, 1, 8))
    if K % 32 == 0:
        scales_ptr = scales_ptr.to(tl.pointer_type(tl.int16))
    scales = tl.max_contiguous(scales_ptr + scales, (2, 1, 4))
    tiles = ()
    for step in tl.static_range(EARLY):  # before x is there
        tiles = tiles + _words_and_scales(
            words, rows, columns, scales, lines, pairs, N, step, K, WIDE, EVEN, TILED
        )
    # t in place of n / 2, so that lanes of neighbours read neighbours.
    n = tl.arange(0, 8 * SLABS)[None, :, None]  # of each slab
    at = 64 * (n // 8) + 8 * (2 * tl.arange(0, 4)[:, None, None] + n % 2)
    at += tl.arange(0, 4)[None, None, :]
    x_pairs = tl.max_contiguous(x_ptr.to(tl.pointer_type(tl.int32)) + at, (2, 1, 4))
    norm_pairs = tl.max_contiguous(norm_ptr.to(tl.pointer_type(tl.int32)) + at, (2, 1, 4))
    spots = begin + tl.arange(0, TALL)
    after = _after_sums(spots, overall_ptr, bias_ptr, N, FIRST, SECOND, SCALED, GATED, BIAS)
    if PDL:
        gdc_wait()
    before = _residual(residual_ptr, spots, N, RESIDUAL)
    xs = ()
    for step in tl.static_range(STEPS if KEEP else 0):
        xs = xs + _x_of_row(
            x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step, K, WIDE, EVEN, NORM, FAST
        )
    squares = tl.zeros((256 * SLABS,), tl.float32)
    if NORM:
        squares = _squares(x_ptr, K, 256 * SLABS)
    factor = 1.0
    further = TALL if ONCE else tl.num_programs(0) * TALL
    for first in tl.range(begin, begin + TALL if ONCE else N, further, num_stages=1):
        if not ONCE:
            spots = first + tl.arange(0, TALL)
            after = _after_sums(spots, overall_ptr, bias_ptr, N, FIRST, SECOND, SCALED, GATED, BIAS)
            before = _residual(residual_ptr, spots, N, RESIDUAL)
        acc = tl.zeros((SLABS, BN, 4), tl.float32)
        for step in tl.static_range(STEPS):
            acc = _add_step(
                acc, tiles[0], tiles[1], xs, x_ptr, norm_ptr, x_pairs, norm_pairs, at, slab, step,
                K, WIDE, EVEN, KEEP, NORM, FAST,
            )  # fmt: skip
            if step + EARLY == STEPS:
                words, scales, rows, lines = _moved(words, scales, rows, lines, further, K)
            following = tiles[:2]  # where nothing follows
            # A branch, or the compiler would read them when all products are done.
            if step + EARLY < STEPS or (not ONCE and first + further < N):
                following = _words_and_scales(
                    words, rows, columns, scales, lines, pairs, N, (step + EARLY) % STEPS, K, WIDE,
                    EVEN, TILED,
                )  # fmt: skip
            tiles = tiles[2:] + following
        if first == begin:  # here, so that no product waits for it
            factor = _factor(squares, eps, K, NORM, FAST)
        _store_rows(acc, factor, spots, after, before, out_ptr, N, BN, GATED, ACT)


@triton.jit
def _residual(residual_ptr, at, N, RESIDUAL: tl.constexpr):
    """What rows `at` are added to, in float32; zeros where there is none."""
    before = tl.zeros(at.shape, tl.float32)
    if RESIDUAL:
        before = tl.load(residual_ptr + at, mask=at < N, other=0.0).to(tl.float32)
    return before


@triton.jit
def _squares(x_ptr, K: tl.constexpr, SOME: tl.constexpr):
    """Sums of squares (SOME,) of x."""
    squares = tl.zeros((SOME,), tl.float32)
    for step in tl.static_range((K + SOME - 1) // SOME):
        at = step * SOME + tl.arange(0, SOME)
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        squares += x * x
    return squares


@triton.jit
def _factor(squares, eps, K: tl.constexpr, NORM: tl.constexpr, FAST: tl.constexpr):
    """One over the root mean square of x, times what sums are too small by."""
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares) / K + eps)
    if FAST:
        factor *= E2M1 / RAISE * 256.0
    return factor


@triton.jit
def _store_rows(
    acc, factor, at, after, before, out_ptr, N, BN: tl.constexpr, GATED: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """Rows `at` of one row's product, of sums (SLABS, BN, 4); `before`: what they are added to."""
    out = _first_rows(tl.sum(tl.sum(acc, 2), 0)[:, None] * factor, after, BN, GATED, ACT)
    out = tl.reshape(out, at.shape) + before
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < N)
