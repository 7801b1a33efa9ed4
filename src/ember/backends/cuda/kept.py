"""What a drop moves in a stream's arena, in two launches: out of it, and back where it then stands.

Contract. What `ember.streaming.kept` says, which has the same by torch's operators, in some twenty
launches. All is read before anything is written, so it does not matter what lies where.
"""

import triton
import triton.language as tl
from torch import Tensor

from ember.backends.cuda.attention import head_pairs
from ember.backends.cuda.group_attention import turned, within

TOKENS = 8  # of a program, which has one head of one layer
# Of these numbers no value is worth compiling for.
CHANGING = ("count", "kept", "known", "begin", "offset")


@triton.jit(do_not_specialize=CHANGING)
def _take(
    kv_ptr,  # (L, 2, H, T, D)
    slots_ptr,  # (N,)
    before_ptr,  # (L, H, S, D) float32: keys before rotation of the first `known` slots
    keys_ptr,  # (L, H, S, D) float32
    values_ptr,  # (L, H, S, D)
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32, negative
    T,
    S,
    count,  # N
    kept,  # how many of these have a value to move
    known,
    begin,
    offset,
    H: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
    TOKENS: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    head, pair = tl.program_id(0).to(tl.int64), tl.arange(0, PAIRS)[None, :]
    place = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = place < count
    slot = tl.load(slots_ptr + place, mask=there, other=0)
    is_known = slot < known
    layer_head = head // H * (2 * H) + head % H
    lines = kv_ptr + ((layer_head * T + begin + slot) * D)[:, None]
    turn = cos_ptr, sin_ptr, offset + slot
    a, b = turned(lines, kv_ptr, *turn, D, ROTATED, PAIRS, False, False, 0.0)
    old = before_ptr + ((head * S + slot) * D)[:, None] + pair
    seen = within((there & is_known)[:, None], pair, HALF, PAIRS)
    a = tl.where(is_known[:, None], tl.load(old, mask=seen, other=0.0), a)
    b = tl.where(is_known[:, None], tl.load(old + HALF, mask=seen, other=0.0), b)
    spot = ((head * S + place) * D)[:, None] + pair
    inside = within(there[:, None], pair, HALF, PAIRS)
    tl.store(keys_ptr + spot, a, mask=inside)
    tl.store(keys_ptr + spot + HALF, b, mask=inside)
    moved = within((place < kept)[:, None], pair, HALF, PAIRS)
    values = lines + T.to(tl.int64) * (H * D) + pair
    tl.store(values_ptr + spot, tl.load(values, mask=moved, other=0.0), mask=moved)
    values += HALF
    tl.store(values_ptr + spot + HALF, tl.load(values, mask=moved, other=0.0), mask=moved)


@triton.jit(do_not_specialize=CHANGING)
def _put(
    kv_ptr,  # (L, 2, H, T, D)
    keys_ptr,  # (L, H, S, D) float32
    values_ptr,  # (L, H, S, D)
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32
    T,
    S,
    count,
    begin,
    offset,
    H: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,
    PAIRS: tl.constexpr,
    TOKENS: tl.constexpr,
    VALUES: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    head, pair = tl.program_id(0).to(tl.int64), tl.arange(0, PAIRS)[None, :]
    place = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside = within((place < count)[:, None], pair, HALF, PAIRS)
    place = tl.minimum(place, count - 1)
    spot = ((head * S + place) * D)[:, None]
    turn = cos_ptr, sin_ptr, offset + place
    a, b = turned(keys_ptr + spot, keys_ptr, *turn, D, ROTATED, PAIRS, False, False, 0.0)
    layer_head = head // H * (2 * H) + head % H
    lines = kv_ptr + ((layer_head * T + begin + place) * D)[:, None] + pair
    kind = kv_ptr.dtype.element_ty
    tl.store(lines, a.to(kind), mask=inside)
    tl.store(lines + HALF, b.to(kind), mask=inside)
    if VALUES:
        lines += T.to(tl.int64) * (H * D)
        found = values_ptr + spot + pair
        tl.store(lines, tl.load(found, mask=inside, other=0.0), mask=inside)
        tl.store(lines + HALF, tl.load(found + HALF, mask=inside, other=0.0), mask=inside)


def take(
    kv: Tensor,
    before: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    kept: int,
    known: int,
    begin: int,
    offset: int,
    tables: tuple[Tensor, Tensor],
    rotated: int,
) -> None:
    """Into `keys` and `values` (L, H, S, D), in order, those of the slots (N,) int32 of `kv`
    (L, 2, H, T, D), slot 0 at `begin`: keys before rotation, of the first `known` slots out of
    `before` (L, H, S, D), of others by the angle of position `offset` + slot; values of the first
    `kept`. `tables`: cos and −sin (positions, D / 2); `rotated`: of the D dimensions."""
    (layers, _, heads, tokens, dim), count = kv.shape, len(slots)
    _take[(layers * heads, triton.cdiv(count, TOKENS))](
        *(kv, slots, before, keys, values, *tables),
        *(tokens, keys.shape[2], count, kept, known, begin, offset),
        **_shape(heads, dim, rotated),
    )


def put(
    kv: Tensor,
    keys: Tensor,
    values: Tensor | None,
    *,
    count: int,
    begin: int,
    offset: int,
    tables: tuple[Tensor, Tensor],
    rotated: int,
) -> None:
    """The first `count` keys, rotated for positions from `offset` on, and values if given, into
    `kv` from `begin` on; see `take`."""
    layers, _, heads, tokens, dim = kv.shape
    if not count:
        return
    _put[(layers * heads, triton.cdiv(count, TOKENS))](
        *(kv, keys, keys if values is None else values, *tables),
        *(tokens, keys.shape[2], count, begin, offset),
        VALUES=values is not None,
        **_shape(heads, dim, rotated),
    )


def _shape(heads: int, dim: int, rotated: int) -> dict[str, int]:
    pairs = head_pairs(dim)
    sizes = {"H": heads, "D": dim, "ROTATED": rotated, "PAIRS": pairs, "TOKENS": TOKENS}
    return sizes | {"num_warps": 1}
