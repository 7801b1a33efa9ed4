"""Stale keys and values moved by what has changed in an adapter's B, in one launch (P1-8.1).

Contract. For all layers at once K_raw += (xAᵀ) Mᵀ, normed and rotated into K, and V += (xAᵀ) Mᵀ,
with M = s ΔB. Keys without a norm have no raw form: rotation is linear, so what is stored is
corrected itself. Everything is read once and written once, sums are in float32, and K follows from
K_raw as it is stored, rounded: correcting by nothing changes nothing.

Shapes: N corrected layers, L layers of the cache, T tokens, Hkv KV heads, D head dimension, r rank.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from ember.backends.cuda.attention import head_pairs
from ember.backends.cuda.group_attention import load_within, within
from ember.backends.cuda.prefill import pairs

TOKENS, HEADS, WARPS = 64, 1, 8  # of one program


@triton.jit
def _change(factors, moved_ptr, columns, there, ranks, RANK: tl.constexpr):
    """(tokens, columns) of factors (tokens, R) · moved (Hkv D, RANK)ᵀ; of those that are there."""
    inner = (ranks < RANK)[None, :] & there[:, None]
    moved = tl.load(moved_ptr + columns[:, None] * RANK + ranks[None, :], mask=inner, other=0.0)
    return tl.dot(factors, tl.trans(moved), input_precision="ieee")


@triton.jit
def _normed(
    a, b, norm_ptr, D: tl.constexpr, ROTATED: tl.constexpr, PAIRS: tl.constexpr, OFFSET, eps
):
    """RMSNorm, times 1 + weight where OFFSET, of rows in two halves (R, PAIRS)."""
    HALF: tl.constexpr = D // 2
    low, high = pairs(D, ROTATED, PAIRS)
    pair = tl.arange(0, PAIRS)
    factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
    first = load_within(norm_ptr + low, pair, HALF, PAIRS).to(tl.float32)[None, :]
    second = load_within(norm_ptr + high, pair, HALF, PAIRS).to(tl.float32)[None, :]
    if OFFSET:
        first += 1.0
        second += 1.0
    a *= factor * first
    b *= factor * second
    return a, b


@triton.jit
def _correct(
    keys_ptr,  # (L, 2, Hkv, S, D), keys and values
    raw_ptr,  # (N, RAW, Hkv, D), where NORM
    factors_ptr,  # (N, 2, KEPT, RANK)
    moved_ptr,  # (N, 2, Hkv D, RANK)
    norms_ptr,  # (N, D), where NORM
    layers_ptr,  # (N,)
    kinds_ptr,  # (L,): which of the tables a layer has
    cos_ptr,  # (KINDS, T, D / 2) float32
    sin_ptr,  # (KINDS, T, D / 2) float32
    T,
    RAW,  # T or more
    KEPT,  # T or more
    layer_stride,
    plane_stride,
    head_stride,
    eps,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
    RANK: tl.constexpr,
    R: tl.constexpr,  # a power of 2 no smaller than RANK and 16
    BT: tl.constexpr,
    HEADS: tl.constexpr,  # of one program
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,  # norms multiply by 1 + weight
):
    HALF: tl.constexpr = D // 2
    which = tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    seen = (tokens < T)[:, None]
    dims, pair, ranks = tl.arange(0, 2 * PAIRS), tl.arange(0, PAIRS), tl.arange(0, R)
    low, high = pairs(D, ROTATED, PAIRS)
    paired, there = pair < HALF, dims < D
    halves = within(seen, pair[None, :], HALF, PAIRS)
    whole = within(seen, dims[None, :], D, 2 * PAIRS)
    layer = tl.load(layers_ptr + which).to(tl.int64)
    turns = (tl.load(kinds_ptr + layer) * T + tokens)[:, None] * HALF + pair[None, :]
    cos = tl.load(cos_ptr + turns, mask=halves, other=0.0)  # (BT, PAIRS)
    sin = tl.load(sin_ptr + turns, mask=halves, other=0.0)
    lines = factors_ptr + which * 2 * KEPT * RANK + tokens[:, None] * RANK + ranks[None, :]
    inner = seen & (ranks < RANK)[None, :]
    key_factors = tl.load(lines, mask=inner, other=0.0)  # (BT, R)
    value_factors = tl.load(lines + KEPT * RANK, mask=inner, other=0.0)
    moved = moved_ptr + which * 2 * HKV * D * RANK
    memory = keys_ptr + layer * layer_stride
    for number in tl.static_range(HEADS):
        head = tl.program_id(1) * HEADS + number
        base = memory + head.to(tl.int64) * head_stride + tokens[:, None] * D
        values = base + plane_stride + dims[None, :]
        raws = raw_ptr + ((which * RAW + tokens[:, None]) * HKV + head) * D
        source = raws if NORM else base
        a = tl.load(source + low[None, :], mask=halves, other=0.0)  # (BT, PAIRS)
        b = tl.load(source + high[None, :], mask=halves, other=0.0)
        v = tl.load(values, mask=whole, other=0.0)  # (BT, D or more)
        kind = v.dtype
        c = _change(key_factors, moved, head * D + low, paired, ranks, RANK)
        d = _change(key_factors, moved, head * D + high, paired, ranks, RANK)
        if NORM:
            a, b = (a.to(tl.float32) + c).to(kind), (b.to(tl.float32) + d).to(kind)
            tl.store(raws + low[None, :], a, mask=halves)
            tl.store(raws + high[None, :], b, mask=halves)
            norms, c, d = norms_ptr + which * D, a.to(tl.float32), b.to(tl.float32)
            c, d = _normed(c, d, norms, D, ROTATED, PAIRS, OFFSET, eps)
            tl.store(base + low[None, :], (c * cos - d * sin).to(kind), mask=halves)
            tl.store(base + high[None, :], (d * cos + c * sin).to(kind), mask=halves)
        else:
            turned1 = a.to(tl.float32) + c * cos - d * sin
            turned2 = b.to(tl.float32) + d * cos + c * sin
            tl.store(base + low[None, :], turned1.to(kind), mask=halves)
            tl.store(base + high[None, :], turned2.to(kind), mask=halves)
        e = _change(value_factors, moved + HKV * D * RANK, head * D + dims, there, ranks, RANK)
        tl.store(values, (v.to(tl.float32) + e).to(kind), mask=whole)


def correct(
    kv: Tensor,
    factors: Tensor,
    moved: Tensor,
    layers: Tensor,
    tables: tuple[Tensor, Tensor],
    kinds: Tensor,
    *,
    rotated: int,
    raw: Tensor | None = None,
    norms: Tensor | None = None,
    eps: float = 0.0,
    offset: bool = False,
) -> None:
    """Corrects the first T tokens of `kv` (L, 2, Hkv, S, D), one row of a cache, and `raw`.

    `factors` (N, 2, T or more, r): xAᵀ of the key and the value projection; `moved`
    (N, 2, Hkv D, r): s ΔB, zero where a projection has not moved; `layers` (N,) int32: which layers
    these are; `tables`: cos and sin (K, T, D / 2) in float32, of which `kinds` (L,) int32 says each
    layer's, for heads of which `rotated` dimensions are. Where keys are normed, `raw`
    (N, T or more, Hkv, D) and `norms` (N, D), with `offset` plus 1.
    """
    (count, _, kept, rank), (_, _, heads, _, dim) = factors.shape, kv.shape
    tokens = tables[0].shape[1]
    if (raw is None) != (norms is None):
        raise ValueError("keys that are normed have a raw form, and others have none")
    if kv.stride(-1) != 1 or kv.stride(-2) != dim:
        raise ValueError(
            "a token's keys and values must lie side by side, tokens one after another"
        )
    for name, given in (("factors", factors), ("moved", moved), ("raw", raw), ("norms", norms)):
        if given is not None and not given.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    each = math.gcd(heads, HEADS)
    room = kept if raw is None else raw.shape[1]
    _correct[(triton.cdiv(tokens, TOKENS), heads // each, count)](
        *(kv, factors if raw is None else raw, factors, moved, factors if norms is None else norms),
        *(layers, kinds, *tables, tokens, room, kept, *kv.stride()[:3], eps),
        HKV=heads,
        D=dim,
        ROTATED=rotated,
        PAIRS=head_pairs(dim),
        RANK=rank,
        R=max(16, triton.next_power_of_2(rank)),
        BT=TOKENS,
        HEADS=each,
        NORM=norms is not None,
        OFFSET=offset,
        num_warps=WARPS,
    )
