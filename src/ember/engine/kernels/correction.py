"""Stale keys and values moved by what an adapter's B has changed, all layers in one launch (P1-8.1).

Contract. `correct` is `ember.policies.execute.correct` for stacked factors: K_raw += (xAᵀ) Mᵀ, normed
and rotated into K; V += (xAᵀ) Mᵀ, with M = s ΔB. Keys without a norm have no raw form: rotation is
linear, so what is stored is corrected itself. Everything is read once and written once, sums are in
float32, and K follows from K_raw as it is stored, rounded: correcting by nothing changes nothing.

Shapes: N corrected layers, L layers of the cache, T tokens, Hkv KV heads, D head dimension, r rank.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 32  # of one program


@triton.jit
def _changes(factors_ptr, moved_ptr, tokens, there, columns, RANK: tl.constexpr, R: tl.constexpr):
    """(tokens, columns) of factors (T, RANK) · moved (Hkv D, RANK)ᵀ."""
    ranks = tl.arange(0, R)
    inner = ranks < RANK
    factors = tl.load(
        factors_ptr + tokens[:, None] * RANK + ranks[None, :],
        mask=there[:, None] & inner[None, :],
        other=0.0,
    )
    moved = tl.load(
        moved_ptr + columns[:, None] * RANK + ranks[None, :], mask=inner[None, :], other=0.0
    )
    return tl.dot(factors, tl.trans(moved), input_precision="ieee")


@triton.jit
def _correct(
    keys_ptr,  # (L, 2, Hkv, S, D), keys and values
    raw_ptr,  # (N, T, Hkv, D), where NORM
    factors_ptr,  # (N, 2, T, RANK)
    moved_ptr,  # (N, 2, Hkv D, RANK)
    norms_ptr,  # (N, D), where NORM
    layers_ptr,  # (N,)
    cos_ptr,  # (T, D / 2) float32
    sin_ptr,  # (T, D / 2) float32
    T,
    layer_stride,
    plane_stride,
    head_stride,
    eps,
    HKV: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,  # a power of 2 no smaller than RANK and 16
    BT: tl.constexpr,
    NORM: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    which, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    there = tokens < T
    seen = there[:, None]
    dims, half = tl.arange(0, D), tl.arange(0, HALF)
    layer = tl.load(layers_ptr + which).to(tl.int64)
    base = keys_ptr + layer * layer_stride + head * head_stride
    keys = base + tokens[:, None] * D + half[None, :]
    values = base + plane_stride + tokens[:, None] * D + dims[None, :]
    raws = raw_ptr + ((which * T + tokens[:, None]) * HKV + head) * D + half[None, :]
    source = raws if NORM else keys
    a = tl.load(source, mask=seen, other=0.0)  # (BT, D / 2)
    b = tl.load(source + HALF, mask=seen, other=0.0)
    v = tl.load(values, mask=seen, other=0.0)  # (BT, D)
    cos = tl.load(cos_ptr + tokens[:, None] * HALF + half[None, :], mask=seen, other=0.0)
    sin = tl.load(sin_ptr + tokens[:, None] * HALF + half[None, :], mask=seen, other=0.0)

    factors = factors_ptr + which * 2 * T * RANK
    moved = moved_ptr + which * 2 * HKV * D * RANK
    c = _changes(factors, moved, tokens, there, head * D + half, RANK, R)
    d = _changes(factors, moved, tokens, there, head * D + HALF + half, RANK, R)
    kind = v.dtype
    if NORM:
        a = (a.to(tl.float32) + c).to(kind)
        b = (b.to(tl.float32) + d).to(kind)
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
    change = _changes(
        factors + T * RANK, moved + HKV * D * RANK, tokens, there, head * D + dims, RANK, R
    )
    tl.store(values, (v.to(tl.float32) + change).to(kind), mask=seen)


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
    """Corrects the first T tokens of `kv` (L, 2, Hkv, S, D), one row of a cache, and `raw` in place.

    `factors` (N, 2, T, r): xAᵀ of the key and the value projection; `moved` (N, 2, Hkv D, r): s ΔB,
    zero where a projection has not moved; `layers` (N,) int32: which layers these are; `cos` and
    `sin` (T, D / 2) in float32. `raw` (N, T, Hkv, D) and `norms` (N, D) where keys are normed.
    """
    (count, _, tokens, rank), (_, _, heads, _, dim) = factors.shape, kv.shape
    if (raw is None) != (norms is None):
        raise ValueError("keys that are normed have a raw form, and others have none")
    if kv.stride(-1) != 1 or kv.stride(-2) != dim:
        raise ValueError("a token's keys and values must lie side by side, tokens one after another")
    for name, given in (("factors", factors), ("moved", moved), ("raw", raw), ("norms", norms)):
        if given is not None and not given.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    _correct[(triton.cdiv(tokens, TOKENS), heads, count)](
        *(kv, factors if raw is None else raw, factors, moved, factors if norms is None else norms),
        *(layers, cos, sin, tokens, kv.stride(0), kv.stride(1), kv.stride(2), eps),
        HKV=heads,
        D=dim,
        RANK=rank,
        R=max(16, triton.next_power_of_2(rank)),
        BT=TOKENS,
        NORM=norms is not None,
        num_warps=4,
    )
