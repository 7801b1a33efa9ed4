"""Prefill with packed matrices, and one kernel each for what stands between the large products.

Contract. Appends the tokens' KV to the cache and gives the last token's logits, from the first
layer or from hidden states on. The matrix products and attention are the libraries', which reach
the hardware's limit here; norm and rotation of queries and keys with the write into the cache are
one kernel, and so is SiLU · up. Rotation is in float32.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from ember.backends.cuda.causal_attention import attend_causal
from ember.backends.cuda.products import add_normed
from ember.backends.forward import Layers, Passage, count
from ember.backends.packing import PackedDecoder
from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture
from ember.model.decoder import Tap, attend, rotary_tables

FEWEST, LONG = 128, 4096  # tokens; measured on an H200


@triton.jit
def _rotate(
    qkv_ptr,  # (B, T, Hq + 2 Hkv, D)
    q_ptr,  # (B, T, Hq, D)
    k_ptr,  # (B, Hkv, S, D), the cache
    v_ptr,  # (B, Hkv, S, D)
    cos_ptr,  # (T, D / 2) float32
    sin_ptr,  # (T, D / 2) float32
    norms_ptr,  # (2, D), where NORM
    T,
    start,  # tokens in the cache
    row_stride,
    head_stride,
    eps,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,  # of one program, a power of 2
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)  # b · T + t
    row, t = token // T, token % T
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    there = (head < HQ + 2 * HKV)[:, None]
    dims = tl.arange(0, HALF)
    places = qkv_ptr + (token * (HQ + 2 * HKV) + head)[:, None] * D + dims[None, :]
    raw1 = tl.load(places, mask=there, other=0.0)
    raw2 = tl.load(places + HALF, mask=there, other=0.0)
    a, b = raw1.to(tl.float32), raw2.to(tl.float32)  # (HEADS, D / 2)
    is_q, is_v = head < HQ, head >= HQ + HKV
    if NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        kind = tl.where(is_q, 0, D)[:, None] + dims[None, :]
        a *= factor * tl.load(norms_ptr + kind).to(tl.float32)
        b *= factor * tl.load(norms_ptr + kind + HALF).to(tl.float32)
    cos = tl.load(cos_ptr + t * HALF + dims)[None, :]
    sin = tl.load(sin_ptr + t * HALF + dims)[None, :]
    out1 = (a * cos - b * sin).to(raw1.dtype)
    out2 = (b * cos + a * sin).to(raw1.dtype)
    queries = q_ptr + (token * HQ + head)[:, None] * D + dims[None, :]
    tl.store(queries, out1, mask=is_q[:, None])
    tl.store(queries + HALF, out2, mask=is_q[:, None])
    spot = row * row_stride + (start + t) * D
    is_k = (head >= HQ) & (head < HQ + HKV)
    keys = k_ptr + spot + (head - HQ)[:, None] * head_stride + dims[None, :]
    tl.store(keys, out1, mask=is_k[:, None])
    tl.store(keys + HALF, out2, mask=is_k[:, None])
    values = v_ptr + spot + (head - HQ - HKV)[:, None] * head_stride + dims[None, :]
    tl.store(values, raw1, mask=is_v[:, None] & there)
    tl.store(values + HALF, raw2, mask=is_v[:, None] & there)


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out (rows, width) = silu(gate) · up, of gate_up (rows, 2 width)."""
    if PDL:
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places, there = gate_up_ptr + row * 2 * width + at, at < width
    gate = tl.load(places, mask=there, other=0.0).to(tl.float32)
    up = tl.load(places + width, mask=there, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + at, out.to(out_ptr.dtype.element_ty), mask=there)


def rotate_into(
    qkv: Tensor,
    norms: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    arch: Architecture,
    *,
    pdl: bool = False,
) -> Tensor:
    """Norms and rotates qkv (B, T, (Hq + 2 Hkv) D); keys and values go to `start` … of the cache's
    views (B, Hkv, S, D), the queries are returned, (B, Hq, T, D)."""
    batch, tokens, _ = qkv.shape
    heads, kv_heads, d = arch.num_heads, arch.num_kv_heads, arch.head_dim
    q = torch.empty(batch, tokens, heads, d, dtype=qkv.dtype, device=qkv.device)
    block = 16
    _rotate[(batch * tokens, triton.cdiv(heads + 2 * kv_heads, block))](
        *(qkv, q, keys, values, cos, sin, cos if norms is None else norms),
        *(tokens, start, keys.stride(0), keys.stride(1), arch.norm_eps),
        HQ=heads,
        HKV=kv_heads,
        D=d,
        HEADS=block,
        NORM=norms is not None,
        PDL=pdl,
        num_warps=4,
        **({"launch_pdl": True} if pdl else {}),
    )
    return q.transpose(1, 2)


def silu_mul(gate_up: Tensor, out: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """silu(gate) · up (rows, I) of gate_up (rows, 2 I)."""
    rows, width = gate_up.shape
    if out is None:
        out = torch.empty(rows, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(width // 2))
    grid, launch = (rows, triton.cdiv(width // 2, block)), {"launch_pdl": True} if pdl else {}
    _silu_mul[grid](gate_up, out, width // 2, BLOCK=block, PDL=pdl, **launch)
    return out


def run_packed(
    arch: Architecture,
    weights: PackedDecoder,
    given: Tensor,
    cache: ContiguousCache,
    layers: Layers,
    tap: Tap | None = None,
) -> Passage:
    """A run of tokens (B, T) or hidden states (B, T, H) after what `cache` holds (see
    `Forward.run`)."""
    (batch, length), depth = given.shape[:2], len(weights.layers)
    past = cache.length(layers.start) if layers.start < depth else 0
    positions = torch.arange(past, past + length, device=given.device)
    cos, sin = (x[0, :, 0].contiguous() for x in rotary_tables(arch, positions, torch.float32))
    count(cache, length, layers)
    eps, hidden = arch.norm_eps, {}
    # Kernels of our own wait for the one before themselves, and start while it ends.
    pdl = given.is_cuda and torch.cuda.get_device_capability(given.device) >= (9, 0)
    if layers.start == 0:
        x = F.embedding(given, weights.embedding).flatten(0, 1)  # (B T, H)
    else:
        x = given.flatten(0, 1).clone()  # it is added to in place
    for index in range(layers.start, depth):
        layer = weights.layers[index]
        if index in layers.keep:
            hidden[index] = x.view(batch, length, -1).clone()
        if index == layers.stop and length > 1:
            x, past = x.view(batch, length, -1)[:, -1].contiguous(), past + length - 1
            cos, sin, length = cos[-1:], sin[-1:], 1
        normed = rms_norm(x, layer.input_norm.weight, eps, pdl)
        qkv = F.linear(normed, layer.qkv, layer.qkv_bias).view(batch, length, -1)
        if tap is not None:
            heads = qkv.unflatten(-1, (-1, arch.head_dim))
            tap(index, "attn_in", normed.view(batch, length, -1))
            tap(index, "k_raw", heads[:, :, arch.num_heads :][:, :, : arch.num_kv_heads])
        norms = None if weights.qk_norms is None else weights.qk_norms[index]
        keys, values = cache.kv[index].unbind(0)
        q = rotate_into(qkv, norms, cos, sin, keys, values, past, arch, pdl=pdl)
        keys, values = cache.read(index)
        if index == depth - 1:  # of the rest only the last token is wanted
            q, x = q[:, :, -1:], x.view(batch, length, -1)[:, -1].contiguous()
        attended = attend_new(q, keys, values, pdl).flatten(0, 1).flatten(1)
        x = _add_linear(x, attended, layer.o, layer.o_bias)
        normed = rms_norm(x, layer.post_norm.weight, eps, pdl)
        acted = silu_mul(F.linear(normed, layer.gate_up, layer.gate_up_bias), pdl=pdl)
        x = _add_linear(x, acted, layer.down, layer.down_bias)
    logits = F.linear(rms_norm(x, weights.norm.weight, eps, pdl), weights.head)
    return Passage(logits, x.view(batch, 1, -1), hidden)


def rms_norm(x: Tensor, weight: Tensor, eps: float, pdl: bool) -> Tensor:
    """RMSNorm of rows x (N, H)."""
    return add_normed(x, weight, torch.empty_like(x), eps=eps, pdl=pdl)


def attend_new(q: Tensor, k: Tensor, v: Tensor, pdl: bool) -> Tensor:
    """(B, T, Hq, D): `attend` for new tokens' queries (B, Hq, T, D) over the cache's views.

    The library's attention is slower where the mask does not begin at the first key, but as fast
    for long prompts that run whole, and faster for few queries of many keys.
    """
    tokens, past, dim = q.shape[2], k.shape[2] - q.shape[2], q.shape[3]
    faster = tokens >= FEWEST and dim <= 128 and (past > 0 or tokens < LONG)
    if pdl and faster and q.element_size() == 2:
        return attend_causal(q.transpose(1, 2), k, v, pdl=pdl)
    return attend(q, k, v).transpose(1, 2)


def _add_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x + y · weightᵀ (+ bias), in place: a result elsewhere would begin with a copy of x."""
    x = x.addmm_(y, weight.t())
    return x if bias is None else x.add_(bias)
