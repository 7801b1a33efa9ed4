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

TOKENS, HEADS, WARPS = 64, 1, 8  # of one program


@triton.jit
def _change(factors, moved_ptr, columns, ranks, RANK: tl.constexpr):
    """(tokens, columns) of factors (tokens, R) · moved (Hkv D, RANK)ᵀ."""
    inner = (ranks < RANK)[None, :]
    moved = tl.load(moved_ptr + columns[:, None] * RANK + ranks[None, :], mask=inner, other=0.0)
    return tl.dot(factors, tl.trans(moved), input_precision="ieee")


@triton.jit
def _correct(
    keys_ptr,  # (L, 2, Hkv, S, D), keys and values
    raw_ptr,  # (N, RAW, Hkv, D), where NORM
    factors_ptr,  # (N, 2, KEPT, RANK)
    moved_ptr,  # (N, 2, Hkv D, RANK)
    norms_ptr,  # (N, D), where NORM
    layers_ptr,  # (N,)
    cos_ptr,  # (T, D / 2) float32
    sin_ptr,  # (T, D / 2) float32
    T,
    RAW,  # T or more
    KEPT,  # T or more
    layer_stride,
    plane_stride,
    head_stride,
    eps,
    HKV: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,  # a power of 2 no smaller than RANK and 16
    BT: tl.constexpr,
    HEADS: tl.constexpr,  # of one program
    NORM: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    which = tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    seen = (tokens < T)[:, None]
    dims, half, ranks = tl.arange(0, D), tl.arange(0, HALF), tl.arange(0, R)
    turns = tokens[:, None] * HALF + half[None, :]
    cos = tl.load(cos_ptr + turns, mask=seen, other=0.0)  # (BT, D / 2)
    sin = tl.load(sin_ptr + turns, mask=seen, other=0.0)
    lines = factors_ptr + which * 2 * KEPT * RANK + tokens[:, None] * RANK + ranks[None, :]
    inner = seen & (ranks < RANK)[None, :]
    key_factors = tl.load(lines, mask=inner, other=0.0)  # (BT, R)
    value_factors = tl.load(lines + KEPT * RANK, mask=inner, other=0.0)
    moved = moved_ptr + which * 2 * HKV * D * RANK
    memory = keys_ptr + tl.load(layers_ptr + which).to(tl.int64) * layer_stride
    for number in tl.static_range(HEADS):
        head = tl.program_id(1) * HEADS + number
        base = memory + head.to(tl.int64) * head_stride + tokens[:, None] * D
        keys, values = base + half[None, :], base + plane_stride + dims[None, :]
        raws = raw_ptr + ((which * RAW + tokens[:, None]) * HKV + head) * D + half[None, :]
        source = raws if NORM else keys
        a = tl.load(source, mask=seen, other=0.0)  # (BT, D / 2)
        b = tl.load(source + HALF, mask=seen, other=0.0)
        v = tl.load(values, mask=seen, other=0.0)  # (BT, D)
        kind = v.dtype
        c = _change(key_factors, moved, head * D + half, ranks, RANK)
        d = _change(key_factors, moved, head * D + HALF + half, ranks, RANK)
        if NORM:
            a, b = (a.to(tl.float32) + c).to(kind), (b.to(tl.float32) + d).to(kind)
            tl.store(raws, a, mask=seen)
            tl.store(raws + HALF, b, mask=seen)
            c, d = a.to(tl.float32), b.to(tl.float32)
            factor = tl.rsqrt((tl.sum(c * c, 1) + tl.sum(d * d, 1)) / D + eps)[:, None]
            c *= factor * tl.load(norms_ptr + which * D + half).to(tl.float32)[None, :]
            d *= factor * tl.load(norms_ptr + which * D + HALF + half).to(tl.float32)[None, :]
            tl.store(keys, (c * cos - d * sin).to(kind), mask=seen)
            tl.store(keys + HALF, (d * cos + c * sin).to(kind), mask=seen)
        else:
            tl.store(keys, (a.to(tl.float32) + c * cos - d * sin).to(kind), mask=seen)
            tl.store(keys + HALF, (b.to(tl.float32) + d * cos + c * sin).to(kind), mask=seen)
        e = _change(value_factors, moved + HKV * D * RANK, head * D + dims, ranks, RANK)
        tl.store(values, (v.to(tl.float32) + e).to(kind), mask=seen)


def correct(
    kv: Tensor,
    factors: Tensor,
    moved: Tensor,
    layers: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    raw: Tensor | None = None,
    norms: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Corrects the first T tokens of `kv` (L, 2, Hkv, S, D), one row of a cache, and `raw`.

    `factors` (N, 2, T or more, r): xAᵀ of the key and the value projection; `moved`
    (N, 2, Hkv D, r): s ΔB, zero where a projection has not moved; `layers` (N,) int32: which layers
    these are; `cos` and `sin` (T, D / 2) in float32. Where keys are normed, `raw`
    (N, T or more, Hkv, D) and `norms` (N, D).
    """
    (count, _, kept, rank), (_, _, heads, _, dim) = factors.shape, kv.shape
    tokens = len(cos)
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
        *(layers, cos, sin, tokens, room, kept, *kv.stride()[:3], eps),
        HKV=heads,
        D=dim,
        RANK=rank,
        R=max(16, triton.next_power_of_2(rank)),
        BT=TOKENS,
        HEADS=each,
        NORM=norms is not None,
        num_warps=WARPS,
    )
