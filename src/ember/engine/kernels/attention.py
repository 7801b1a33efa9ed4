"""Attention of one new token a row over a static cache whose prompt several rows may share.

Contract. `attend` norms and rotates the new queries and keys, writes the new keys and values into
the cache, and gives what each query attends to. Row r continues the prompt of row r % P: the first
`shared[r % P]` tokens are read from that row, once for all candidates of the prompt, what follows
from the row's own memory. The cache is read in parts by programs of their own; a part's result and
log-sum-exp are merged afterwards, in the order of the parts. Parts depend on lengths alone, so a
row's result does not depend on the batch.

Shapes: B rows, P prompts, C = B / P candidates, Hq and Hkv heads, G = Hq / Hkv, D head dimension,
S capacity.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SHARED_PARTS, OWN_PARTS = 16, 4  # of the prompt, and of what follows it
QUERIES = 64  # the most rows of queries in one program
BLOCK, WARPS = 64, 4  # keys at a time, and warps, of one program


@triton.jit
def _attend(
    qkv_ptr,  # (B, (Hq + 2 Hkv) D)
    kv_ptr,  # (2, B, Hkv, S, D), one layer
    cos_ptr,  # (S, D / 2) float32
    sin_ptr,  # (S, D / 2) float32
    norms_ptr,  # (2, D): of queries and keys, where NORM
    position_ptr,  # (B,): where the new token goes
    shared_ptr,  # (P,): tokens of the prompt
    out_ptr,  # (B, Hq, SHARED_PARTS + OWN_PARTS, D) float32
    lse_ptr,  # (B, Hq, SHARED_PARTS + OWN_PARTS) float32, base 2
    P,
    S,
    scale,  # log2(e) / sqrt(D)
    eps,
    B: tl.constexpr,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # rows of queries, a power of 2
    PER: tl.constexpr,  # candidates of one program
    CHUNKS: tl.constexpr,  # programs for all candidates
    BLOCK: tl.constexpr,  # keys at a time
    SHARED_PARTS: tl.constexpr,
    OWN_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    G: tl.constexpr = HQ // HKV
    HALF: tl.constexpr = D // 2
    PARTS: tl.constexpr = SHARED_PARTS + OWN_PARTS
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    head = tl.program_id(0)
    task = tl.program_id(1)
    lane = tl.arange(0, R)
    dims = tl.arange(0, HALF)
    alldims = tl.arange(0, D)
    keys = tl.arange(0, BLOCK)

    # What this program reads: a part of a prompt for some candidates, or of a row for itself.
    on_prompt = task < P * CHUNKS * SHARED_PARTS
    own_task = task - P * CHUNKS * SHARED_PARTS
    part = tl.where(on_prompt, task % SHARED_PARTS, own_task % OWN_PARTS)
    chunk = (task // SHARED_PARTS) % CHUNKS
    source = tl.where(on_prompt, task // (SHARED_PARTS * CHUNKS), own_task // OWN_PARTS)
    candidate = chunk * PER + lane // G
    row = tl.where(on_prompt, candidate * P + source, source)  # (R,)
    used = tl.where(on_prompt, (lane < PER * G) & (row < B), lane < G)
    row = tl.where(used, row, source)
    slot = tl.where(on_prompt, part, SHARED_PARTS + part)
    # The position is that of any row that is served: all candidates of a prompt are equally long.
    position = tl.load(position_ptr + source).to(tl.int32)
    shared = tl.load(shared_ptr + source % P).to(tl.int32)
    first = tl.where(on_prompt, 0, shared)
    length = tl.where(on_prompt, shared, position - shared)
    parts = tl.where(on_prompt, SHARED_PARTS, OWN_PARTS)
    size = tl.cdiv(tl.cdiv(length, parts), BLOCK) * BLOCK
    start = first + part * size
    stop = tl.minimum(start + size, first + length)
    new = (on_prompt == 0) & (part == 0)  # this program has the new token as well

    base = kv_ptr + (source * HKV + head).to(tl.int64) * S * D
    values = base + S.to(tl.int64) * (B * HKV * D)
    seen = (start + keys < stop)[:, None]
    at = (start + keys)[:, None] * D
    k1 = tl.load(base + at + dims[None, :], mask=seen, other=0.0)  # (BLOCK, D / 2)
    k2 = tl.load(base + at + HALF + dims[None, :], mask=seen, other=0.0)
    v = tl.load(values + at + alldims[None, :], mask=seen, other=0.0)  # (BLOCK, D)
    if PDL:
        gdc_wait()

    kind = kv_ptr.dtype.element_ty
    cos = tl.load(
        cos_ptr + tl.load(position_ptr + row).to(tl.int64)[:, None] * HALF + dims[None, :]
    )
    sin = tl.load(
        sin_ptr + tl.load(position_ptr + row).to(tl.int64)[:, None] * HALF + dims[None, :]
    )
    places = qkv_ptr + row[:, None] * WIDTH + (head * G + lane % G)[:, None] * D + dims[None, :]
    a = tl.load(places).to(tl.float32)  # (R, D / 2)
    b = tl.load(places + HALF).to(tl.float32)
    if NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        a *= factor * tl.load(norms_ptr + dims).to(tl.float32)[None, :]
        b *= factor * tl.load(norms_ptr + HALF + dims).to(tl.float32)[None, :]
    q1 = (a * cos - b * sin).to(kind)
    q2 = (b * cos + a * sin).to(kind)

    best = tl.full((R,), -float("inf"), tl.float32)
    mass = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, D), tl.float32)
    if new:
        place = qkv_ptr + source * WIDTH + (HQ + head) * D
        lower = tl.load(place + dims).to(tl.float32)  # (D / 2,)
        upper = tl.load(place + HALF + dims).to(tl.float32)
        if NORM:
            total = tl.sum(lower * lower, 0) + tl.sum(upper * upper, 0)
            whole = tl.rsqrt(total / D + eps)
            lower *= whole * tl.load(norms_ptr + D + dims).to(tl.float32)
            upper *= whole * tl.load(norms_ptr + D + HALF + dims).to(tl.float32)
        turn = position.to(tl.int64) * HALF + dims
        c, s = tl.load(cos_ptr + turn), tl.load(sin_ptr + turn)
        new1 = (lower * c - upper * s).to(kind)
        new2 = (upper * c + lower * s).to(kind)
        newv = tl.load(place + HKV * D + alldims)
        tl.store(base + position * D + dims, new1)
        tl.store(base + position * D + HALF + dims, new2)
        tl.store(values + position * D + alldims, newv)
        best = tl.sum(q1.to(tl.float32) * new1.to(tl.float32)[None, :], 1)
        best = (best + tl.sum(q2.to(tl.float32) * new2.to(tl.float32)[None, :], 1)) * scale
        mass = tl.full((R,), 1.0, tl.float32)
        acc = tl.zeros((R, D), tl.float32) + newv.to(tl.float32)[None, :]

    for begin in range(start, stop, BLOCK):
        # The next keys and values are on their way while these are used.
        coming = (begin + BLOCK + keys < stop)[:, None]
        at = (begin + BLOCK + keys)[:, None] * D
        next1 = tl.load(base + at + dims[None, :], mask=coming, other=0.0)
        next2 = tl.load(base + at + HALF + dims[None, :], mask=coming, other=0.0)
        next_v = tl.load(values + at + alldims[None, :], mask=coming, other=0.0)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale  # (R, BLOCK)
        scores = tl.where((begin + keys < stop)[None, :], scores, -float("inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        shares = tl.exp2(scores - top[:, None])
        kept = tl.exp2(best - top)
        mass = mass * kept + tl.sum(shares, 1)
        acc = tl.dot(shares.to(kind), v, acc * kept[:, None], input_precision="ieee")
        best = top
        k1, k2, v = next1, next2, next_v

    spots = (row * HQ + head * G + lane % G) * PARTS + slot  # (R,)
    lse = tl.where(mass > 0, best + tl.log2(mass), -float("inf"))
    tl.store(lse_ptr + spots, lse, mask=used)
    if (stop > start) | new:
        out = acc / mass[:, None]
        tl.store(out_ptr + spots[:, None] * D + alldims[None, :], out, mask=used[:, None])


@triton.jit
def _merge(
    parts_ptr,  # (B · Hq, PARTS, D) float32
    lse_ptr,  # (B · Hq, PARTS) float32, base 2
    out_ptr,  # (B · Hq, D)
    D: tl.constexpr,
    PARTS: tl.constexpr,
    POWER: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    part = tl.arange(0, POWER)
    dims = tl.arange(0, D)
    lse = tl.load(lse_ptr + row * PARTS + part, mask=part < PARTS, other=-float("inf"))
    shares = tl.exp2(lse - tl.max(lse, 0))
    # Empty parts have written nothing: what lies in their memory must not be read.
    seen = (shares > 0)[:, None]
    places = parts_ptr + (row * PARTS + part)[:, None] * D + dims[None, :]
    found = tl.load(places, mask=seen, other=0.0)
    out = tl.sum(found * shares[:, None], 0) / tl.sum(shares, 0)
    tl.store(out_ptr + row * D + dims, out.to(out_ptr.dtype.element_ty))


class Attention:
    """Attention over one cache: `kv` (L, 2, B, Hkv, S, D); `rows` share the prompts of the first
    `prompts` rows."""

    def __init__(self, kv: Tensor, num_heads: int, prompts: int, cos: Tensor, sin: Tensor):
        """`cos` and `sin` (S, D / 2), in float32."""
        _, _, batch, kv_heads, _, dim = kv.shape
        self._kv, self._heads, self._prompts = kv, num_heads, prompts
        self._cos, self._sin = cos, sin
        group, candidates = num_heads // kv_heads, batch // prompts
        self._per = min(candidates, max(1, QUERIES // group))
        self._chunks = triton.cdiv(candidates, self._per)
        self._rows = max(16, triton.next_power_of_2(self._per * group))
        parts = SHARED_PARTS + OWN_PARTS
        self._parts = torch.zeros(batch, num_heads, parts, dim, device=kv.device)
        self._lse = torch.zeros(batch, num_heads, parts, device=kv.device)

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        norms: Tensor | None,
        position: Tensor,
        shared: Tensor,
        out: Tensor,
        *,
        eps: float,
        pdl: bool = False,
    ) -> Tensor:
        """out (B, Hq D) for qkv (B, (Hq + 2 Hkv) D), whose token goes to `position` (B,).

        `norms` (2, D) are the weights of the query and key norms; `shared` (P,) see the module.
        """
        _, _, batch, kv_heads, capacity, dim = self._kv.shape
        launch = {"launch_pdl": True} if pdl else {}
        tasks = self._prompts * self._chunks * SHARED_PARTS + batch * OWN_PARTS
        _attend[(kv_heads, tasks)](
            *(qkv, self._kv[layer], self._cos, self._sin, qkv if norms is None else norms),
            *(position, shared, self._parts, self._lse, self._prompts, capacity),
            *(math.log2(math.e) / math.sqrt(dim), eps),
            B=batch,
            HQ=self._heads,
            HKV=kv_heads,
            D=dim,
            R=self._rows,
            PER=self._per,
            CHUNKS=self._chunks,
            BLOCK=BLOCK,
            SHARED_PARTS=SHARED_PARTS,
            OWN_PARTS=OWN_PARTS,
            NORM=norms is not None,
            PDL=pdl,
            num_warps=WARPS,
            **launch,
        )
        _merge[(batch * self._heads,)](
            *(self._parts, self._lse, out),
            D=dim,
            PARTS=SHARED_PARTS + OWN_PARTS,
            POWER=triton.next_power_of_2(SHARED_PARTS + OWN_PARTS),
            PDL=pdl,
            num_warps=1,
            **launch,
        )
        return out
