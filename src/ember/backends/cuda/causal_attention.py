"""Attention of a prompt's new tokens to all that the cache holds up to each, in one kernel.

Contract. `attend_causal` is `ember.model.decoder.attend` for two queries or more: query t of T sees
the keys 0 … S + t of S + T, whose memory is read where it lies. One program has a tile of a head's
queries and goes through their keys once: those that all its queries see without a mask, the last
ones with one. Long tiles start first, so that the short ones fill the gaps at the end. Sums and the
softmax are in float32, in base 2; shares are rounded to the values' format.

Shapes: B rows, Hq and Hkv heads, T new and S cached tokens, D head dimension.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from ember.backends.cuda.attention import shared_memory


class Tile(NamedTuple):
    """How attention is cut: tiles of `queries`, `keys` at a time, `stages` of them on their way."""

    queries: int
    keys: int
    stages: int
    warps: int


@triton.jit
def _absorb(q, k, v, allowed, MASK: tl.constexpr, scale, best, mass, acc):
    """Softmax goes on over a block of keys (BN, D), of which `allowed` (BM, BN) are seen."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BM, BN)
    if MASK:
        scores = tl.where(allowed, scores, -float("inf"))
    top = tl.maximum(best, tl.max(scores, 1) * scale)
    shares = tl.exp2(scores * scale - top[:, None])
    kept = tl.exp2(best - top)
    mass = mass * kept + tl.sum(shares, 1)
    acc = tl.dot(shares.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
    return top, mass, acc


@triton.jit
def _attend_causal(
    q_desc,  # (B T, Hq D)
    k_desc,  # (B Hkv, S + T, D), the cache
    v_desc,  # (B Hkv, S + T, D)
    out_ptr,  # (B, T, Hq, D)
    T,
    S,
    scale,  # log2(e) / sqrt(D)
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest first
    row, head = tl.program_id(0) // HQ, tl.program_id(0) % HQ
    kv = row * HKV + head // (HQ // HKV)
    dims, keys = tl.arange(0, D), tl.arange(0, BN)
    t = tile * BM + tl.arange(0, BM)
    seen = S + tile * BM + 1  # keys that all queries of the tile see
    full = seen // BN * BN
    stop = tl.minimum(S + tile * BM + BM, S + T)
    if PDL:
        gdc_wait()
    q = q_desc.load([row * T + tile * BM, head * D])  # (BM, D)
    best = tl.full((BM,), -float("inf"), tl.float32)
    mass = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for begin in tl.range(0, full, BN, num_stages=STAGES):
        k = k_desc.load([kv, begin, 0]).reshape(BN, D)
        v = v_desc.load([kv, begin, 0]).reshape(BN, D)
        best, mass, acc = _absorb(q, k, v, True, False, scale, best, mass, acc)
    for begin in tl.range(full, stop, BN, num_stages=STAGES):
        k = k_desc.load([kv, begin, 0]).reshape(BN, D)
        v = v_desc.load([kv, begin, 0]).reshape(BN, D)
        allowed = begin + keys[None, :] <= S + t[:, None]
        best, mass, acc = _absorb(q, k, v, allowed, True, scale, best, mass, acc)
    out = acc / mass[:, None]
    lines = ((row.to(tl.int64) * T + t) * HQ + head)[:, None] * D + dims[None, :]
    tl.store(out_ptr + lines, out.to(out_ptr.dtype.element_ty), mask=(t < T)[:, None])


def attend_causal(
    q: Tensor, k: Tensor, v: Tensor, *, tile: Tile | None = None, pdl: bool = False
) -> Tensor:
    """(B, T, Hq, D) for queries q (B, T, Hq, D) and the cache's views k, v (B, Hkv, S + T, D).

    The memory of all rows must be one block, that is `k` and `v` views of (B, Hkv, capacity, D).
    """
    (batch, tokens, heads, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    if not q.is_contiguous() or k.stride()[1:] != v.stride()[1:] or k.stride()[2:] != (dim, 1):
        raise ValueError("queries must be contiguous, a head's keys and values one block each")
    if batch > 1 and not k.stride(0) == v.stride(0) == kv_heads * k.stride(1):
        raise ValueError("the rows of a cache must follow one another")
    tile = tile or causal_tile(dim, q.element_size(), shared_memory(q.device) - 4096)
    queries = TensorDescriptor(
        q, [batch * tokens, heads * dim], [heads * dim, 1], [tile.queries, dim]
    )
    shape, strides = [batch * kv_heads, keys, dim], [k.stride(1), dim, 1]
    memory = [TensorDescriptor(x, shape, strides, [1, tile.keys, dim]) for x in (k, v)]
    out = torch.empty_like(q)
    _attend_causal[(batch * heads, triton.cdiv(tokens, tile.queries))](
        *(queries, *memory, out, tokens, keys - tokens),
        math.log2(math.e) / math.sqrt(dim),
        HQ=heads,
        HKV=kv_heads,
        D=dim,
        BM=tile.queries,
        BN=tile.keys,
        STAGES=tile.stages,
        PDL=pdl,
        num_warps=tile.warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


def causal_tile(dim: int, size: int, shared: int) -> Tile:
    """As many blocks of keys on their way as a program's `shared` bytes of memory hold, up to 3;
    `size`: bytes of a number. Measured on an H200 (docs/engine.md)."""
    tile = Tile(64, 64, 3, 4)
    while tile.stages > 1 and (tile.queries + 2 * tile.stages * tile.keys) * dim * size > shared:
        tile = tile._replace(stages=tile.stages - 1)
    return tile
