"""Prefill with packed matrices, and one kernel each for what stands between the large products.

Contract. Appends the tokens' KV to the cache and gives the last token's logits, from the first
layer or from hidden states on. The matrix products and attention are the libraries', which reach
the hardware's limit here; norm and rotation of queries and keys with the write into the cache are
one kernel, and so is the MLP's activation. Rotation is in float32.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from ember.backends.cuda.attention import head_pairs, kinds_of_tables
from ember.backends.cuda.causal_attention import attend_causal
from ember.backends.cuda.group_attention import load_within, within
from ember.backends.cuda.packed_prefill import linear
from ember.backends.cuda.products import activated, add_normed
from ember.backends.forward import Layers, Passage, count
from ember.backends.packing import Norm, PackedDecoder, Weight
from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture
from ember.model.decoder import Tap, attend, attend_near, embedding_scale

FEWEST, LONG = 128, 4096  # tokens; measured on an H200


@triton.jit
def pairs(D: tl.constexpr, ROTATED: tl.constexpr, PAIRS: tl.constexpr):
    """A head's dimensions in D / 2 pairs that rotation turns, first and second of each, (PAIRS,).

    Rotation leaves pairs beyond the first ROTATED / 2 as they are: tables say 1 and 0 for them.
    """
    pair = tl.arange(0, PAIRS)
    low, high = pair, pair + D // 2
    if ROTATED < D:
        turned = pair < ROTATED // 2
        low = tl.where(turned, pair, pair + ROTATED // 2)
        high = tl.where(turned, pair + ROTATED // 2, high)
    return low, high


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
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
    HEADS: tl.constexpr,  # of one program, a power of 2
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,  # norms multiply by 1 + weight
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)  # b · T + t
    row, t = token // T, token % T
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    low, high = pairs(D, ROTATED, PAIRS)
    low, high, pair = low[None, :], high[None, :], tl.arange(0, PAIRS)[None, :]
    there = within((head < HQ + 2 * HKV)[:, None], pair, HALF, PAIRS)
    places = qkv_ptr + (token * (HQ + 2 * HKV) + head)[:, None] * D
    raw1 = tl.load(places + low, mask=there, other=0.0)
    raw2 = tl.load(places + high, mask=there, other=0.0)
    a, b = raw1.to(tl.float32), raw2.to(tl.float32)  # (HEADS, PAIRS)
    is_q, is_v = head < HQ, head >= HQ + HKV
    if NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        kind = norms_ptr + tl.where(is_q, 0, D)[:, None]
        first = load_within(kind + low, pair, HALF, PAIRS).to(tl.float32)
        second = load_within(kind + high, pair, HALF, PAIRS).to(tl.float32)
        if OFFSET:
            first += 1.0
            second += 1.0
        a *= factor * first
        b *= factor * second
    cos = load_within(cos_ptr + t * HALF + pair, pair, HALF, PAIRS)
    sin = load_within(sin_ptr + t * HALF + pair, pair, HALF, PAIRS)
    out1 = (a * cos - b * sin).to(raw1.dtype)
    out2 = (b * cos + a * sin).to(raw1.dtype)
    queries = q_ptr + (token * HQ + head)[:, None] * D
    tl.store(queries + low, out1, mask=is_q[:, None] & there)
    tl.store(queries + high, out2, mask=is_q[:, None] & there)
    spot = row * row_stride + (start + t) * D
    is_k = (head >= HQ) & (head < HQ + HKV)
    keys = k_ptr + spot + (head - HQ)[:, None] * head_stride
    tl.store(keys + low, out1, mask=is_k[:, None] & there)
    tl.store(keys + high, out2, mask=is_k[:, None] & there)
    values = v_ptr + spot + (head - HQ - HKV)[:, None] * head_stride
    tl.store(values + low, raw1, mask=is_v[:, None] & there)
    tl.store(values + high, raw2, mask=is_v[:, None] & there)


@triton.jit
def _activate(
    x_ptr,  # (rows, width), or gate and up (rows, 2 width) where GATED
    out_ptr,  # (rows, width)
    width,
    BLOCK: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places, there = x_ptr + row * (1 + GATED) * width + at, at < width
    out = activated(tl.load(places, mask=there, other=0.0).to(tl.float32), ACT)
    if GATED:
        out *= tl.load(places + width, mask=there, other=0.0).to(tl.float32)
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
        ROTATED=arch.rotary_dim,
        PAIRS=head_pairs(d),
        HEADS=block,
        NORM=norms is not None,
        OFFSET=arch.norm == "rms_offset",
        PDL=pdl,
        num_warps=4,
        **({"launch_pdl": True} if pdl else {}),
    )
    return q.transpose(1, 2)


def activate(
    x: Tensor, arch: Architecture, out: Tensor | None = None, *, pdl: bool = False
) -> Tensor:
    """act(gate) · up (rows, I) of gate and up (rows, 2 I); act(x) of x (rows, I) without a gate."""
    rows, width = x.shape
    width //= 1 + arch.gated_mlp
    if out is None:
        out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    _activate[(rows, triton.cdiv(width, block))](
        *(x, out, width),
        BLOCK=block,
        GATED=arch.gated_mlp,
        ACT=arch.activation,
        PDL=pdl,
        **({"launch_pdl": True} if pdl else {}),
    )
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
    tables = kinds_of_tables(arch, positions)
    count(cache, length, layers)
    hidden, by = {}, weights.prefill_by
    # Kernels of our own wait for the one before themselves, and start while it ends.
    pdl = given.is_cuda and torch.cuda.get_device_capability(given.device) >= (9, 0)

    def norm(x: Tensor, by: Norm) -> Tensor:
        out = torch.empty_like(x)
        add_normed(x, [(by, out)], eps=arch.norm_eps, kind=arch.norm, pdl=pdl)
        return out

    def add(x: Tensor, y: Tensor, weight: Weight, bias: Tensor | None, post: Norm | None) -> None:
        """x += y · weightᵀ (+ bias), in place: a result elsewhere would begin with a copy of x."""
        if post is not None:
            parts = linear(y, weight, bias, by)[None]
            add_normed(x, [], parts=parts, post=post, eps=arch.norm_eps, kind=arch.norm, pdl=pdl)
            return
        if isinstance(weight, Tensor):
            x.addmm_(y, weight.t())
        else:
            x += linear(y, weight, by=by)
        if bias is not None:
            x += bias

    if layers.start == 0:
        x = F.embedding(given, weights.embedding).flatten(0, 1)  # (B T, H)
        if arch.scaled_embedding:
            x *= embedding_scale(arch, x.dtype)
    else:
        x = given.flatten(0, 1).clone()  # it is added to in place
    for index in range(layers.start, depth):
        layer = weights.layers[index]
        if index in layers.keep:
            hidden[index] = x.view(batch, length, -1).clone()
        if index == layers.stop and length > 1:
            x, past = x.view(batch, length, -1)[:, -1].contiguous(), past + length - 1
            tables = {kind: tuple(x[-1:] for x in both) for kind, both in tables.items()}
            length = 1
        normed = norm(x, layer.input_norm)
        qkv = linear(normed, layer.qkv, layer.qkv_bias, by).view(batch, length, -1)
        if tap is not None:
            heads = qkv.unflatten(-1, (-1, arch.head_dim))
            tap(index, "attn_in", normed.view(batch, length, -1))
            tap(index, "k_raw", heads[:, :, arch.num_heads :][:, :, : arch.num_kv_heads])
        norms = None if weights.qk_norms is None else weights.qk_norms[index]
        keys, values = cache.kv[index].unbind(0)
        cos, sin = tables[arch.rope_is_local(index)]
        q = rotate_into(qkv, norms, cos, sin, keys, values, past, arch, pdl=pdl)
        if arch.query_scalar is not None:
            q *= arch.score_scale * arch.head_dim**0.5  # attention divides by the latter
        keys, values = cache.read(index)
        if index == depth - 1:  # of the rest only the last token is wanted
            q, x = q[:, :, -1:], x.view(batch, length, -1)[:, -1].contiguous()
        attended = attend_new(q, keys, values, arch.window(index), pdl).flatten(0, 1).flatten(1)
        normed = norm(x, layer.post_norm) if arch.parallel_residual else None
        add(x, attended, layer.o, layer.o_bias, layer.attn_out_norm)
        normed = norm(x, layer.post_norm) if normed is None else normed
        acted = activate(linear(normed, layer.gate_up, layer.gate_up_bias, by), arch, pdl=pdl)
        add(x, acted, layer.down, layer.down_bias, layer.mlp_out_norm)
    logits = linear(norm(x, weights.norm), weights.head, by=by)
    return Passage(logits, x.view(batch, 1, -1), hidden)


def attend_new(q: Tensor, k: Tensor, v: Tensor, window: int | None, pdl: bool) -> Tensor:
    """(B, T, Hq, D): `attend`, in a sliding layer `attend_near`, for new tokens' queries
    (B, Hq, T, D) over the cache's views.

    The library's attention is slower where the mask does not begin at the first key, but as fast
    for long prompts that run whole, and faster for few queries of many keys.
    """
    if window is not None:
        return attend_near(q, k, v, window).transpose(1, 2)
    tokens, past, dim = q.shape[2], k.shape[2] - q.shape[2], q.shape[3]
    faster = tokens >= FEWEST and dim in (32, 64, 128) and (past > 0 or tokens < LONG)
    if pdl and faster and q.element_size() == 2:
        return attend_causal(q.transpose(1, 2), k, v, pdl=pdl)
    return attend(q, k, v).transpose(1, 2)
