"""Products of a few rows with a large weight matrix, which is read once at full bandwidth.

Contract. `x · weightᵀ` for x (M, K) and a weight (N, K), with what stands around it in a decoder
fused in: the RMSNorm of x before, a bias, the gated SiLU of two halves, the residual after. Sums
are in float32 and in a fixed order, so a row's result does not depend on what else is in the batch,
as long as the same kernel serves it: `matvec` one row (multiply-adds), `skinny` more (tensor
cores).

The weight does not depend on the kernel before. So each program starts to read it before it waits
for that kernel (programmatic dependent launch), and the memory does not fall idle in between.

Where x is normed, `matvec` takes x as it is and norms it on the way. For `skinny` that would stand
in the way of the tensor cores, so whoever produces x leaves it multiplied by the norm's weight
(`scaled`) and the sums of its squares over tiles of columns (`squares`); the factor 1 / rms of each
row is applied to the result.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NORM_TILE = 64  # columns of x whose squares are summed in one number


@triton.jit
def _silu_mul(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _read_once(pointers, mask):
    """Weights: what is read once should not push out what is read again."""
    return tl.load(pointers, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _prefetch(starts, length, BN: tl.constexpr, SLICES: tl.constexpr):
    """Asks the L2 for `length` (BN,) 16-bit numbers from `starts` (BN,) on, by SLICES threads each.

    The hint costs neither registers nor shared memory, so it may run far ahead.
    """
    slices = tl.arange(0, SLICES)
    each = tl.cdiv(length, SLICES * 8) * 8  # whole 16 bytes
    first = slices[None, :] * each[:, None]
    count = tl.minimum(each[:, None], length[:, None] - first)
    count = tl.maximum(count, 0) // 8 * 8 * 2
    places = (starts[:, None] + first).to(tl.int64)
    tl.inline_asm_elementwise(
        """{
            .reg .pred some;
            setp.gt.s32 some, $2, 0;
            @some cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [places, count],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _embed(
    tokens_ptr,  # (M,)
    table_ptr,  # (V, H)
    x_ptr,  # (M, H)
    scaled_ptr,  # (M, H)
    squares_ptr,  # (tiles of H, M)
    norm_ptr,  # (H,)
    M,
    H,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """x = table[tokens], and what `skinny` wants to know of it."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, tile = tl.program_id(0), tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    there = columns < H
    token = tl.load(tokens_ptr + row).to(tl.int64)
    x = tl.load(table_ptr + token * H + columns, mask=there, other=0.0)
    wide = x.to(tl.float32)
    tl.store(x_ptr + row * H + columns, x, mask=there)
    scaled = wide * tl.load(norm_ptr + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(scaled_ptr + row * H + columns, scaled.to(x.dtype), mask=there)
    tl.store(squares_ptr + tile * M + row, tl.sum(wide * wide, 0))


@triton.jit
def _matvec(
    x_ptr,  # (1, K)
    w_ptr,  # (N, K), or (2 N, K) where GATED
    out_ptr,  # (1, N)
    norm_ptr,  # (K,)
    residual_ptr,  # (1, N)
    bias_ptr,  # (N,), or (2 N,) where GATED
    N,
    eps,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    AHEAD: tl.constexpr,  # tiles of the weight in flight
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    STEPS: tl.constexpr = (K + BK - 1) // BK
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    columns = tl.arange(0, BK)
    there = rows < N
    weights = w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
    ups = weights + N.to(tl.int64) * K
    tiles = ()
    up_tiles = ()
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    for step in tl.static_range(EARLY):
        mask = there[:, None] & (columns[None, :] < K - step * BK)
        tiles = tiles + (_read_once(weights + step * BK, mask),)
        if GATED:
            up_tiles = up_tiles + (_read_once(ups + step * BK, mask),)
    if PDL:
        gdc_wait()
    acc = tl.zeros((BN, BK), tl.float32)
    up_acc = tl.zeros((BN, BK), tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    for step in tl.static_range(STEPS):
        inside = columns < K - step * BK
        x = tl.load(x_ptr + step * BK + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_ptr + step * BK + columns, mask=inside, other=0.0).to(tl.float32)
        acc += tiles[0].to(tl.float32) * x[None, :]
        tiles = tiles[1:]
        if GATED:
            up_acc += up_tiles[0].to(tl.float32) * x[None, :]
            up_tiles = up_tiles[1:]
        if step + AHEAD < STEPS:
            mask = there[:, None] & (columns[None, :] < K - (step + AHEAD) * BK)
            tiles = tiles + (_read_once(weights + (step + AHEAD) * BK, mask),)
            if GATED:
                up_tiles = up_tiles + (_read_once(ups + (step + AHEAD) * BK, mask),)
    out = tl.sum(acc, 1)
    up = tl.sum(up_acc, 1)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        out *= factor
        up *= factor
    if BIAS:
        out += tl.load(bias_ptr + rows, mask=there, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias_ptr + N + rows, mask=there, other=0.0).to(tl.float32)
    if GATED:
        out = _silu_mul(out, up)
    if RESIDUAL:
        out += tl.load(residual_ptr + rows, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _skinny(
    x_ptr,  # (M, K); `scaled` where NORM
    w_ptr,  # (N, K), or (2 N, K) where GATED
    out_ptr,  # (M, N)
    squares_in_ptr,  # (NORM_TILES, M): of x, where NORM
    residual_ptr,  # (M, N)
    bias_ptr,  # (N,), or (2 N,) where GATED
    next_norm_ptr,  # (N,): where NEXT, the norm that the result goes through
    scaled_ptr,  # (M, N): where NEXT, the result times that norm's weight
    squares_out_ptr,  # (tiles of N, M): where NEXT
    partial_ptr,  # (PARTS, 1 or 2, M, N)
    counter_ptr,  # (tiles of N,) zeros
    M,
    N,
    eps,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    AHEAD: tl.constexpr,  # tiles of the weight that the L2 is asked for before the wait
    SLICES: tl.constexpr,  # threads that ask for a row
    STAGES: tl.constexpr,  # tiles in flight
    PARTS: tl.constexpr,  # of K, each with programs of its own
    NORM_TILES: tl.constexpr,
    NORM_POWER: tl.constexpr,  # a power of 2, no smaller
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    NEXT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    STEPS: tl.constexpr = (K + BK * PARTS - 1) // (BK * PARTS)
    WHOLE: tl.constexpr = K % (BK * PARTS) == 0
    tile, part = tl.program_id(0), tl.program_id(1)
    rows = tile * BN + tl.arange(0, BN)
    columns = part * STEPS * BK + tl.arange(0, BK)
    batch = tl.arange(0, BM)
    inside = rows[:, None] < N
    present = batch[:, None] < M
    starts = w_ptr + rows.to(tl.int64) * K + part * STEPS * BK
    half = N.to(tl.int64) * K
    if PDL:
        if AHEAD > 0:
            # As a hint to the L2: whatever is not in the matrix is not asked for.
            length = tl.where(rows < N, tl.minimum(AHEAD * BK, K - part * STEPS * BK), 0)
            _prefetch(starts, length, BN, SLICES)
            if GATED:
                _prefetch(starts + half, length, BN, SLICES)
        gdc_wait()
    weights = starts[:, None] + tl.arange(0, BK)[None, :]
    inputs = x_ptr + batch[:, None] * K + columns[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        left = K - step * BK
        w = _read_once(weights + step * BK, inside if WHOLE else inside & (columns < left)[None, :])
        x = tl.load(
            inputs + step * BK,
            mask=present if WHOLE else present & (columns < left)[None, :],
            other=0.0,
        )
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        if GATED:
            w = _read_once(
                weights + half + step * BK,
                inside if WHOLE else inside & (columns < left)[None, :],
            )
            up = tl.dot(w, tl.trans(x), up, input_precision="ieee")
    spots = batch[None, :] * N + rows[:, None]
    there = (batch[None, :] < M) & inside
    last = True
    if PARTS > 1:
        HALVES: tl.constexpr = 2 if GATED else 1
        own = partial_ptr + part * HALVES * M * N + spots
        tl.store(own, acc, mask=there)
        if GATED:
            tl.store(own + M * N, up, mask=there)
        tl.debug_barrier()
        last = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") == PARTS - 1
        if last:  # the program that comes last adds all parts, in their order
            tl.store(counter_ptr + tile, 0)
            acc = tl.zeros((BN, BM), tl.float32)
            up = tl.zeros((BN, BM), tl.float32)
            for other in tl.static_range(PARTS):
                found = partial_ptr + other * HALVES * M * N + spots
                acc += tl.load(found, mask=there, other=0.0, cache_modifier=".cg")
                if GATED:
                    up += tl.load(found + M * N, mask=there, other=0.0, cache_modifier=".cg")
    if last:
        if NORM:
            which = tl.arange(0, NORM_POWER)
            squares = tl.load(
                squares_in_ptr + which[:, None] * M + batch[None, :],
                mask=(which[:, None] < NORM_TILES) & (batch[None, :] < M),
                other=0.0,
            )
            factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
            acc *= factor[None, :]
            up *= factor[None, :]
        if BIAS:
            acc += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
            if GATED:
                more = tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0)
                up += more.to(tl.float32)[:, None]
        if GATED:
            acc = _silu_mul(acc, up)
        if RESIDUAL:
            acc += tl.load(residual_ptr + spots, mask=there, other=0.0).to(tl.float32)
        out = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + spots, out, mask=there)
        if NEXT:
            wide = tl.where(there, out.to(tl.float32), 0.0)
            norm = tl.load(next_norm_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
            scaled = (wide * norm[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(scaled_ptr + spots, scaled, mask=there)
            tl.store(squares_out_ptr + tile * M + batch, tl.sum(wide * wide, 0), mask=batch < M)


@dataclass(frozen=True)
class Plan:
    """How a product is cut into programs; see the kernels for what the fields mean."""

    rows: int  # BN
    columns: int  # BK
    ahead: int
    warps: int
    parts: int = 1
    stages: int = 3


def matvec(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    plan: Plan,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """out (1, N) = x (1, K) · weightᵀ; see the module. `out` may be `residual`."""
    n, k = out.shape[1], weight.shape[1]
    _matvec[(triton.cdiv(n, plan.rows),)](
        *(x, weight, out),
        *(x if norm is None else norm, out if residual is None else residual),
        *(x if bias is None else bias, n, eps),
        K=k,
        BN=plan.rows,
        BK=plan.columns,
        AHEAD=plan.ahead,
        NORM=norm is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        PDL=pdl,
        num_warps=plan.warps,
        **_launch(pdl),
    )
    return out


class Normed:
    """x (M, H) on its way through a norm: `scaled` (M, H) and `squares` (tiles, M)."""

    def __init__(self, rows: int, size: int, dtype: torch.dtype, device: torch.device):
        self.scaled = torch.zeros(rows, size, dtype=dtype, device=device)
        self.squares = torch.zeros(triton.cdiv(size, NORM_TILE), rows, device=device)


class Scratch:
    """Memory for the sums that several programs share, of products up to (M, width)."""

    def __init__(self, numbers: int, tiles: int, device: torch.device):
        self.partial = torch.empty(numbers, dtype=torch.float32, device=device)
        self.counter = torch.zeros(tiles, dtype=torch.int32, device=device)


def embed(
    tokens: Tensor, table: Tensor, x: Tensor, normed: Normed, norm: Tensor, *, pdl: bool = False
) -> Tensor:
    """x (M, H) = table[tokens], and `normed` for the norm of weight `norm`."""
    m, h = x.shape
    _embed[(m, triton.cdiv(h, NORM_TILE))](
        *(tokens, table, x, normed.scaled, normed.squares, norm, m, h),
        TILE=NORM_TILE,
        PDL=pdl,
        num_warps=1,
        **_launch(pdl),
    )
    return x


def skinny(
    x: Tensor | Normed,
    weight: Tensor,
    out: Tensor,
    *,
    plan: Plan,
    scratch: Scratch,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    normed: Normed | None = None,
    next_norm: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """out (M, N) = x (M, K) · weightᵀ; `normed` receives the result for the norm `next_norm`."""
    (m, n), k = out.shape, weight.shape[1]
    norm = isinstance(x, Normed)
    if normed is not None and plan.rows != NORM_TILE:
        raise ValueError(f"a product that feeds a norm has tiles of {NORM_TILE} rows")
    tiles = triton.cdiv(n, plan.rows)
    halves = 2 if gated else 1
    norm_tiles = x.squares.shape[0] if norm else 1
    if plan.parts > 1 and (
        plan.parts * halves * m * n > scratch.partial.numel() or tiles > scratch.counter.numel()
    ):
        raise ValueError("the scratch memory is too small for this product")
    _skinny[(tiles, plan.parts)](
        *(x.scaled if norm else x, weight, out),
        *(x.squares if norm else scratch.partial, out if residual is None else residual),
        *(weight if bias is None else bias, weight if normed is None else next_norm),
        *(out if normed is None else normed.scaled,),
        *(scratch.partial if normed is None else normed.squares, scratch.partial, scratch.counter),
        *(m, n, eps),
        K=k,
        BM=max(16, triton.next_power_of_2(m)),
        BN=plan.rows,
        BK=plan.columns,
        AHEAD=plan.ahead if weight.element_size() == 2 else 0,
        SLICES=max(1, plan.warps * 32 // plan.rows),
        STAGES=plan.stages,
        PARTS=plan.parts,
        NORM_TILES=norm_tiles,
        NORM_POWER=triton.next_power_of_2(norm_tiles),
        NORM=norm,
        GATED=gated,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        NEXT=normed is not None,
        PDL=pdl,
        num_warps=plan.warps,
        **_launch(pdl),
    )
    return out


def _launch(pdl: bool) -> dict:
    return {"launch_pdl": True} if pdl else {}
