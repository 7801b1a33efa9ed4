"""Heads of any even number of dimensions in a program: loaded, normed, rotated and stored.

Contract. Dimensions stay in the order of memory, so that what is read lies in one piece. A head is
one tile of columns where its size is a power of 2 and not large, else two: a power of 2 below it
and what is left, of whose columns those beyond the head are zeros. Tiles are a tuple of one or two.
Rotation takes a head's own dimensions and loads their partners once more. Norms and rotation are in
float32.

Shapes: R rows, D head dimension, FIRST + REST columns.
"""

import triton
import triton.language as tl

LEAST = 16  # columns of a tile, for a product on tensor cores
SECOND = 32  # of the second one at least: eight for each of four warps
WIDEST = 256  # bytes of a row of a tile; a wider one takes more registers than there are


def head_tiles(dim: int, size: int) -> dict[str, int]:
    """Columns of a head's tiles; `size`: bytes of a number."""
    first = max(LEAST, 1 << (dim.bit_length() - 1))
    if first == dim > WIDEST // size:
        first //= 2
    rest = max(SECOND, triton.next_power_of_2(dim - first)) if dim > first else 0
    return {"FIRST": first, "REST": rest}


@triton.jit
def load_tile(lines, there, AT: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr):
    """SIZE columns from AT on of heads that begin at `lines` (…, 1), zeros where not `there`
    (…, 1) and beyond the head."""
    columns = AT + tl.arange(0, SIZE)
    if AT + SIZE > D:
        there = there & (columns < D)
    return tl.load(lines + columns, mask=there, other=0.0)


@triton.jit
def load_head(lines, there, D: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """Tiles (…, FIRST) and (…, REST), as `load_tile`."""
    tiles = (load_tile(lines, there, 0, FIRST, D),)
    if REST > 0:
        tiles = tiles + (load_tile(lines, there, FIRST, REST, D),)
    return tiles


@triton.jit
def store_tile(lines, tile, there, AT: tl.constexpr, SIZE: tl.constexpr, D: tl.constexpr):
    """The opposite of `load_tile`, in the format of the memory."""
    columns = AT + tl.arange(0, SIZE)
    if AT + SIZE > D:
        there = there & (columns < D)
    tl.store(lines + columns, tile.to(lines.dtype.element_ty), mask=there)


@triton.jit
def store_head(lines, tiles, there, D: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """The opposite of `load_head`."""
    store_tile(lines, tiles[0], there, 0, FIRST, D)
    if REST > 0:
        store_tile(lines, tiles[1], there, FIRST, REST, D)


@triton.jit
def _weight(places, there, OFFSET: tl.constexpr):
    weight = tl.load(places, mask=there, other=0.0).to(tl.float32)
    if OFFSET:
        weight += 1.0
    return weight


@triton.jit
def turned_head(
    lines,
    there,
    norm_ptr,  # (D,)
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32
    position,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,  # the norm multiplies by 1 + weight
    eps,
):
    """As `load_head`; with an RMSNorm where NORM, and rotated to `position` (…, 1)."""
    tiles = load_head(lines, there, D, FIRST, REST)
    if NORM:
        squares = 0.0
        for n in tl.static_range(len(tiles)):
            x = tiles[n].to(tl.float32)
            squares += tl.sum(x * x, -1, keep_dims=True)
        factor = tl.rsqrt(squares / D + eps)
    HALF: tl.constexpr = ROTATED // 2
    found = ()
    for n in tl.static_range(len(tiles)):
        dims = n * FIRST + tl.arange(0, FIRST if n == 0 else REST)
        x = tiles[n].to(tl.float32)
        if NORM:
            x *= _weight(norm_ptr + dims, dims < D, OFFSET)
        if n * FIRST < ROTATED:
            turns, early = dims < ROTATED, dims < HALF
            pair = tl.where(early, dims, dims - HALF)
            partner = tl.where(early, dims + HALF, dims - HALF)
            y = tl.load(lines + partner, mask=there & turns, other=0.0).to(tl.float32)
            sign = tl.where(early, -1.0, 1.0)
            if NORM:
                sign *= _weight(norm_ptr + partner, turns, OFFSET)
            turn = position.to(tl.int64) * (D // 2) + pair
            cos = tl.load(cos_ptr + turn, mask=turns, other=1.0)
            sin = tl.load(sin_ptr + turn, mask=turns, other=0.0)
            x = x * cos + y * sign * sin
        if NORM:
            x *= factor
        found = found + (x.to(lines.dtype.element_ty),)
    return found


@triton.jit
def zero_head(R: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """Tiles of zeros (R, FIRST) and (R, REST) in float32."""
    tiles = (tl.zeros((R, FIRST), tl.float32),)
    if REST > 0:
        tiles = tiles + (tl.zeros((R, REST), tl.float32),)
    return tiles


@triton.jit
def times(tiles, factor):
    """Tiles in float32, each multiplied by a factor (…, 1)."""
    found = (tiles[0].to(tl.float32) * factor,)
    if len(tiles) > 1:
        found = found + (tiles[1].to(tl.float32) * factor,)
    return found


@triton.jit
def repeated(x, R: tl.constexpr):
    """Rows x (FEW, SIZE) again and again until they are R; both numbers are powers of 2."""
    if x.shape[0] < R:
        copies = tl.broadcast_to(x[None], (R // x.shape[0], x.shape[0], x.shape[1]))
        x = tl.reshape(copies, (R, x.shape[1]))
    return x


@triton.jit
def absorb(q, k, v, allowed, scale, best, mass, acc):
    """Softmax goes on over a block of keys: the largest score of each query so far, the sum of
    exp2(score - largest), and the same sum of values. Where nothing is allowed nothing changes."""
    scores = tl.dot(q[0], tl.trans(k[0]), input_precision="ieee")
    if len(q) > 1:
        scores = tl.dot(q[1], tl.trans(k[1]), scores, input_precision="ieee")
    scores = tl.where(allowed, scores * scale, -float("inf"))  # (R, BLOCK)
    top = tl.maximum(best, tl.max(scores, 1))
    level = tl.where(top == -float("inf"), 0.0, top)
    shares = tl.exp2(scores - level[:, None])
    kept = tl.exp2(best - level)
    mass = mass * kept + tl.sum(shares, 1)
    shares, acc = shares.to(v[0].dtype), times(acc, kept[:, None])
    found = (tl.dot(shares, v[0], acc[0], input_precision="ieee"),)
    if len(q) > 1:
        found = found + (tl.dot(shares, v[1], acc[1], input_precision="ieee"),)
    return top, mass, found
