"""Products of a few rows with a large weight matrix, which is read once at full bandwidth.

Contract. `x · weightᵀ` for x (M, K) and a weight (N, K), with what stands around it in a decoder
fused in: the RMSNorm of x before, a bias, the activation, a gate's with the other half, the
residual after. Norms of other kinds, but for one row, and norms of what is added to the residual
stream are `add_normed`'s. One row may have two products at once, of one input or added up: a launch
less, in which the memory would fall idle. Sums are in float32 and in a fixed order, so a row's
result does not depend on what else is in the batch, as long as the same kernel serves it: `matvec`
one row (multiply-adds), `skinny` more (tensor cores).

The weight does not depend on the kernel before. So each program of `matvec` starts to read it
before it waits for that kernel (programmatic dependent launch), and the memory does not fall idle
in between. `skinny` reads through shared memory, of which a program that waits would take its share
from those that work: its successor may start only when it is done reading.

Where x is normed, `matvec` takes x as it is and norms it on the way; a LayerNorm's mean and
variance it takes while the weight is coming. (Sums over the weight, made once, would spare that and
be wrong as soon as the weight is changed in place.) For `skinny` norms would stand in the way of
the tensor cores, so whoever produces x leaves it multiplied by the norm's weight (`scaled`) and the
sums of its squares over tiles of columns (`squares`); the factor 1 / rms of each row is applied to
the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.packing import Norm

NORM_TILE = 16  # the fewest columns of x whose squares are summed in one number
EMBED_TILE = 64  # columns of one program
FEW_ROWS = 8  # the most of `skinny`


def starts_late(rows: int) -> bool:
    """Whether a product of so many rows, which reads through shared memory, had better not wait
    with a share of it while the kernel before its predecessor still works. Of more rows it makes no
    difference (one H200, docs/notes/engine.md)."""
    return 1 < rows <= FEW_ROWS


@triton.jit
def activated(x, ACT: tl.constexpr):
    """An activation by its name, of float32; none where it is empty."""
    if ACT == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":  # x (1 + tanh(u)) / 2 is x / (1 + exp(-2 u))
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    return x


@triton.jit
def read_once(pointers, mask):
    """Weights: what is read once should not push out what is read again."""
    return tl.load(pointers, mask=mask, other=0, eviction_policy="evict_first")


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
def _tile(
    step: tl.constexpr,
    w_ptr,  # (N, K)
    more_w_ptr,  # (N, MORE)
    rows,  # (BN,)
    there,  # (BN,)
    K: tl.constexpr,
    MORE: tl.constexpr,
    BK: tl.constexpr,
):
    """A step's columns of a weight, and after its last of another one, (BN, BK)."""
    FIRST: tl.constexpr = (K + BK - 1) // BK
    if step < FIRST:
        lines, left = w_ptr + rows[:, None] * K + step * BK, K - step * BK
    else:
        lines = more_w_ptr + rows[:, None] * MORE + (step - FIRST) * BK
        left = MORE - (step - FIRST) * BK
    columns = tl.arange(0, BK)[None, :]
    return read_once(lines + columns, there[:, None] & (columns < left))


@triton.jit
def _matvec(
    x_ptr,  # (1, K)
    w_ptr,  # (N, K), or (2 N, K) where GATED
    out_ptr,  # (1, N)
    norm_ptr,  # (K,)
    norm_bias_ptr,  # (K,): where NORM is "layer"
    residual_ptr,  # (1, N)
    bias_ptr,  # (N,), or (2 N,) where GATED
    more_x_ptr,  # (1, MORE): whose product with `more_w` is added
    more_w_ptr,  # (N, MORE); where BESIDE (N_BESIDE, K), and the next five are its own
    more_bias_ptr,  # (N,)
    beside_out_ptr,
    beside_norm_ptr,
    beside_norm_bias_ptr,
    N,
    N_BESIDE,
    eps,
    K: tl.constexpr,
    MORE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    AHEAD: tl.constexpr,  # tiles of the weight in flight
    NORM: tl.constexpr,  # its kind, or empty
    GATED: tl.constexpr,
    ACT: tl.constexpr,  # of what is beside, where something is
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    MORE_BIAS: tl.constexpr,
    BESIDE: tl.constexpr,
    READY: tl.constexpr,  # x was there when this started; `more_x` is of the kernel before
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    STEPS: tl.constexpr = (K + BK - 1) // BK + (MORE + BK - 1) // BK
    FIRST: tl.constexpr = (K + BK - 1) // BK
    tile = tl.program_id(0)
    if BESIDE:  # the programs after those of the first weight have the other one
        beside = tile >= tl.cdiv(N, BN)
        tile -= tl.where(beside, tl.cdiv(N, BN), 0)
        N = tl.where(beside, N_BESIDE, N)
        w_ptr = tl.where(beside, more_w_ptr, w_ptr)
        out_ptr = tl.where(beside, beside_out_ptr, out_ptr)
        norm_ptr = tl.where(beside, beside_norm_ptr, norm_ptr)
        norm_bias_ptr = tl.where(beside, beside_norm_bias_ptr, norm_bias_ptr)
    rows = tile * BN + tl.arange(0, BN)
    columns = tl.arange(0, BK)
    there = rows < N
    lines = rows.to(tl.int64)
    ups_ptr = w_ptr + N.to(tl.int64) * K
    tiles = ()
    up_tiles = ()
    EARLY: tl.constexpr = AHEAD if AHEAD < STEPS else STEPS
    for step in tl.static_range(EARLY):
        tiles = tiles + (_tile(step, w_ptr, more_w_ptr, lines, there, K, MORE, BK),)
        if GATED:
            up_tiles = up_tiles + (_tile(step, ups_ptr, w_ptr, lines, there, K, 0, BK),)
    if PDL and not READY:
        gdc_wait()
    if NORM == "layer":  # while the weight is coming
        xs = ()
        total = tl.zeros((BK,), tl.float32)
        for step in tl.static_range(STEPS):
            at = step * BK + columns
            xs = xs + (tl.load(x_ptr + at, mask=at < K, other=0.0),)
            total += xs[step].to(tl.float32)
        mean = tl.sum(total, 0) / K
        total = tl.zeros((BK,), tl.float32)
        for step in tl.static_range(STEPS):
            centred = tl.where(step * BK + columns < K, xs[step].to(tl.float32) - mean, 0.0)
            total += centred * centred
        factor = tl.rsqrt(tl.sum(total, 0) / K + eps)
        shift = -mean * factor
    acc = tl.zeros((BN, BK), tl.float32)
    up_acc = tl.zeros((BN, BK), tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    for step in tl.static_range(STEPS):
        if PDL and READY and step == FIRST:
            gdc_wait()
        if step < FIRST:
            at = step * BK + columns
            inside = at < K
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        else:
            at = (step - FIRST) * BK + columns
            x = tl.load(more_x_ptr + at, mask=at < MORE, other=0.0).to(tl.float32)
        if NORM != "":
            weight = tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if NORM == "rms_offset":
                weight += 1.0
            if NORM == "layer":
                offset = tl.load(norm_bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
                x = (xs[step].to(tl.float32) * factor + shift) * weight + offset
            else:
                squares += x * x
                x *= weight
        acc += tiles[0].to(tl.float32) * x[None, :]
        tiles = tiles[1:]
        if GATED:
            up_acc += up_tiles[0].to(tl.float32) * x[None, :]
            up_tiles = up_tiles[1:]
        if step + AHEAD < STEPS:
            tiles = tiles + (_tile(step + AHEAD, w_ptr, more_w_ptr, lines, there, K, MORE, BK),)
            if GATED:
                new = _tile(step + AHEAD, ups_ptr, w_ptr, lines, there, K, 0, BK)
                up_tiles = up_tiles + (new,)
    out = tl.sum(acc, 1)
    up = tl.sum(up_acc, 1)
    if NORM != "" and NORM != "layer":
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        out *= factor
        up *= factor
    has_bias, has_more = there, there
    if BESIDE:
        has_bias, has_more = there & (beside == 0), there & beside
    if BIAS:
        out += tl.load(bias_ptr + rows, mask=has_bias, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias_ptr + N + rows, mask=there, other=0.0).to(tl.float32)
    if MORE_BIAS:
        out += tl.load(more_bias_ptr + rows, mask=has_more, other=0.0).to(tl.float32)
    if BESIDE:
        if beside:
            out = activated(out, ACT)
    else:
        out = activated(out, ACT)
    if GATED:
        out *= up
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
    M,
    N,
    eps,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SLABS: tl.constexpr,  # of BK columns, each with a warp of its own
    STAGES: tl.constexpr,  # tiles in flight
    NORM_TILES: tl.constexpr,
    NORM_POWER: tl.constexpr,  # a power of 2, no smaller
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    NEXT: tl.constexpr,
    PDL: tl.constexpr,
):
    WIDE: tl.constexpr = SLABS * BK
    STEPS: tl.constexpr = (K + WIDE - 1) // WIDE
    WHOLE: tl.constexpr = K % WIDE == 0
    tile = tl.program_id(0)
    rows = tile * BN + tl.arange(0, BN)
    batch = tl.arange(0, BM)
    columns = tl.arange(0, SLABS)[:, None, None] * BK + tl.arange(0, BK)[None, None, :]
    inside = rows[None, :, None] < N
    present = batch[None, :, None] < M
    weights = w_ptr + rows.to(tl.int64)[None, :, None] * K + columns
    ups = weights + N.to(tl.int64) * K
    inputs = x_ptr + batch[None, :, None] * K + columns
    if PDL:
        gdc_wait()
    acc = tl.zeros((SLABS, BN, BM), tl.float32)
    up = tl.zeros((SLABS, BN, BM), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        left = columns < K - step * WIDE
        w = read_once(weights + step * WIDE, inside if WHOLE else inside & left)
        x = tl.load(
            inputs + step * WIDE, mask=present if WHOLE else present & left, other=0.0
        )  # (SLABS, BM, BK)
        x = tl.permute(x, (0, 2, 1))
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if GATED:
            w = read_once(ups + step * WIDE, inside if WHOLE else inside & left)
            up = tl.dot(w, x, up, input_precision="ieee")
    if PDL:
        gdc_launch_dependents()
    out = tl.sum(acc, 0)  # (BN, BM)
    more = tl.sum(up, 0)
    spots = batch[None, :] * N + rows[:, None]
    there = (batch[None, :] < M) & (rows[:, None] < N)
    if NORM:
        which = tl.arange(0, NORM_POWER)
        squares = tl.load(
            squares_in_ptr + which[:, None] * M + batch[None, :],
            mask=(which[:, None] < NORM_TILES) & (batch[None, :] < M),
            other=0.0,
        )
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        out *= factor[None, :]
        more *= factor[None, :]
    if BIAS:
        out += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
        if GATED:
            offset = tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0)
            more += offset.to(tl.float32)[:, None]
    out = activated(out, ACT)
    if GATED:
        out *= more
    if RESIDUAL:
        out += tl.load(residual_ptr + spots, mask=there, other=0.0).to(tl.float32)
    result = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + spots, result, mask=there)
    if NEXT:
        wide = tl.where(there, result.to(tl.float32), 0.0)
        norm = tl.load(next_norm_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
        scaled = (wide * norm[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(scaled_ptr + spots, scaled, mask=there)
        tl.store(squares_out_ptr + tile * M + batch, tl.sum(wide * wide, 0), mask=batch < M)


@triton.jit
def _wide(
    x_ptr,  # (M, K)
    w_ptr,  # (N, K), or (2 N, K) where GATED
    out_ptr,  # (M, N), or (SPLITS, M, N) float32 where SPLITS > 1
    bias_ptr,  # (N,), or (2 N,) where GATED
    M,
    N,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,  # of the columns, each for other programs
    STAGES: tl.constexpr,  # tiles in flight
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    STEPS: tl.constexpr = (K + BK - 1) // BK
    EACH: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    WHOLE: tl.constexpr = K % BK == 0
    batch = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    columns = tl.arange(0, BK)[None, :]
    inside, present = (rows < N)[:, None], (batch < M)[:, None]
    weights = w_ptr + rows.to(tl.int64)[:, None] * K + columns
    ups = weights + N.to(tl.int64) * K
    inputs = x_ptr + batch[:, None] * K + columns
    if PDL:
        gdc_wait()
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    begin = split * EACH
    for step in tl.range(begin, tl.minimum(begin + EACH, STEPS), num_stages=STAGES):
        left = columns < K - step * BK
        x = tl.load(inputs + step * BK, mask=present if WHOLE else present & left, other=0.0)
        w = read_once(weights + step * BK, inside if WHOLE else inside & left)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        if GATED:
            w = read_once(ups + step * BK, inside if WHOLE else inside & left)
            up = tl.dot(w, tl.trans(x), up, input_precision="ieee")
    if PDL:
        gdc_launch_dependents()
    if BIAS:
        acc += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
        if GATED:
            offset = tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0)
            up += offset.to(tl.float32)[:, None]
    acc = activated(acc, ACT)
    if GATED:
        acc *= up
    spots = (split * M + batch).to(tl.int64)[None, :] * N + rows[:, None]
    there = (batch < M)[None, :] & (rows < N)[:, None]
    tl.store(out_ptr + spots, acc.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _norm(x, weight, bias_ptr, columns, there, eps, H: tl.constexpr, KIND: tl.constexpr):
    """A row x of H numbers, in float32 and zero beyond them, through a norm of the kind."""
    if KIND == "rms_offset":
        weight += 1.0
    if KIND == "layer":
        x = tl.where(there, x - tl.sum(x, 0) / H, 0.0)
    factor = tl.rsqrt(tl.sum(x * x, 0) / H + eps)
    out = x * factor * weight
    if KIND == "layer":
        out += tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
    return out


@triton.jit
def _add_normed(
    parts_ptr,  # (SPLITS, M, H), float32 or x's format
    x_ptr,  # (M, H)
    bias_ptr,  # (H,)
    post_ptr,  # (H,): where POST, the norm of what is added
    post_bias_ptr,  # (H,)
    norm_ptr,  # (H,)
    norm_bias_ptr,  # (H,), as all of norms' where KIND is "layer"
    normed_ptr,  # (M, H)
    other_ptr,  # (H,): where NORMS is 2
    other_bias_ptr,  # (H,)
    other_normed_ptr,  # (M, H)
    M,
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of 2 no smaller than H
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    POST: tl.constexpr,
    NORMS: tl.constexpr,  # of the result: 0, 1 or 2
    KIND: tl.constexpr,
    LATE: tl.constexpr,  # who follows starts when the kernel before has ended
    PDL: tl.constexpr,
):
    """x += parts (and bias), normed before where POST; normed = norm(x), and other_normed."""
    if PDL and not LATE:
        gdc_launch_dependents()
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    there = columns < H
    if NORMS > 0:
        norm = tl.load(norm_ptr + columns, mask=there, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        if LATE:
            gdc_launch_dependents()
    x = tl.load(x_ptr + row * H + columns, mask=there, other=0.0)
    kind = x.dtype
    if SPLITS > 0:
        total = x.to(tl.float32)
        if POST:
            total = tl.zeros((BLOCK,), tl.float32)
        for split in tl.static_range(SPLITS):
            places = parts_ptr + (split * M + row) * H + columns
            total += tl.load(places, mask=there, other=0.0)
        if BIAS:
            total += tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
        if POST:
            post = tl.load(post_ptr + columns, mask=there, other=0.0).to(tl.float32)
            total = _norm(total, post, post_bias_ptr, columns, there, eps, H, KIND)
            total += x.to(tl.float32)
        x = total.to(kind)
        tl.store(x_ptr + row * H + columns, x, mask=there)
    wide = x.to(tl.float32)
    if NORMS > 0:
        out = _norm(wide, norm, norm_bias_ptr, columns, there, eps, H, KIND)
        tl.store(normed_ptr + row * H + columns, out.to(kind), mask=there)
    if NORMS > 1:
        norm = tl.load(other_ptr + columns, mask=there, other=0.0).to(tl.float32)
        out = _norm(wide, norm, other_bias_ptr, columns, there, eps, H, KIND)
        tl.store(other_normed_ptr + row * H + columns, out.to(kind), mask=there)


@dataclass(frozen=True)
class Plan:
    """How a product is cut into programs and tiles; `ahead` tiles are in flight."""

    rows: int  # BN
    columns: int  # BK
    ahead: int
    warps: int  # and, for `skinny`, slabs


def matvec(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    plan: Plan,
    norm: Norm | None = None,
    kind: str = "rms",
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    act: str = "",
    more: tuple[Tensor, Tensor, Tensor | None] | None = None,
    beside: tuple[Tensor, Tensor, Tensor | None, Norm] | None = None,
    ready: bool = False,
    pdl: bool = False,
) -> Tensor:
    """out (1, N) = norm(x) (1, K) · weightᵀ; see the module. `out` may be `residual`.

    Of two halves (2 N, K) of the weight, `gated`, the first goes through `act` and multiplies the
    other. `more`, an input (1, K'), a weight (N, K') and a bias: their product is added. `beside`,
    a result (1, N'), a weight (N', K), a bias and a norm: another product of x, which alone goes
    through `act`. `ready`: the kernel before makes only the input in `more` and lets this one start
    when x is there (see `Attention`), so that it is not waited for before its input's turn.
    """
    if (more or beside) and (gated or (more and (beside or norm))):
        raise ValueError("two products at once have no gate, and of two inputs none is normed")
    if ready and more is None:
        raise ValueError("without another input there is nothing of the kernel before to wait for")
    n, k = out.shape[1], weight.shape[1]
    more_x, more_weight, more_bias = more or (x, weight, None)
    beside_out, beside_norm, tiles = out, norm, triton.cdiv(n, plan.rows)
    if beside is not None:
        beside_out, more_weight, more_bias, beside_norm = beside
        tiles += triton.cdiv(beside_out.shape[1], plan.rows)
    unread = Norm(x, None)
    _matvec[(tiles,)](
        *(x, weight, out, *_present(norm or unread), out if residual is None else residual),
        *(x if bias is None else bias, more_x, more_weight),
        *(x if more_bias is None else more_bias, beside_out, *_present(beside_norm or unread)),
        *(n, beside_out.shape[1], eps),
        K=k,
        MORE=0 if more is None else more_weight.shape[1],
        BN=plan.rows,
        BK=plan.columns,
        AHEAD=plan.ahead,
        NORM="" if norm is None else kind,
        GATED=gated,
        ACT=act,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        MORE_BIAS=more_bias is not None,
        BESIDE=beside is not None,
        READY=ready,
        PDL=pdl,
        num_warps=plan.warps,
        **_launch(pdl),
    )
    return out


class Normed:
    """x (M, H) on its way through a norm: `scaled` (M, H) and `squares` (tiles, M).

    `tiles` is how many of them whoever wrote it last has filled.
    """

    def __init__(self, rows: int, size: int, dtype: torch.dtype, device: torch.device):
        self.scaled = torch.zeros(rows, size, dtype=dtype, device=device)
        self.squares = torch.zeros(triton.cdiv(size, NORM_TILE), rows, device=device)
        self.tiles = len(self.squares)


def embed(
    tokens: Tensor, table: Tensor, x: Tensor, normed: Normed, norm: Tensor, *, pdl: bool = False
) -> Tensor:
    """x (M, H) = table[tokens], and `normed` for the norm of weight `norm`."""
    m, h = x.shape
    normed.tiles = triton.cdiv(h, EMBED_TILE)
    _embed[(m, normed.tiles)](
        *(tokens, table, x, normed.scaled, normed.squares, norm, m, h),
        TILE=EMBED_TILE,
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
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    act: str = "",
    normed: Normed | None = None,
    next_norm: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """out (M, N) = x (M, K) · weightᵀ; `normed` receives the result for the norm `next_norm`."""
    (m, n), k = out.shape, weight.shape[1]
    norm = isinstance(x, Normed)
    norm_tiles = x.tiles if norm else 1
    tiles = triton.cdiv(n, plan.rows)
    if normed is not None:
        if tiles > len(normed.squares):
            raise ValueError(f"a product that feeds a norm has tiles of {NORM_TILE} rows or more")
        normed.tiles = tiles
    _skinny[(tiles,)](
        *(x.scaled if norm else x, weight, out),
        *(x.squares if norm else out, out if residual is None else residual),
        *(weight if bias is None else bias, weight if normed is None else next_norm),
        *(out if normed is None else normed.scaled, out if normed is None else normed.squares),
        *(m, n, eps),
        K=k,
        BM=max(8, triton.next_power_of_2(m)),
        BN=plan.rows,
        BK=plan.columns,
        SLABS=plan.warps,
        STAGES=plan.ahead,
        NORM_TILES=norm_tiles,
        NORM_POWER=triton.next_power_of_2(norm_tiles),
        NORM=norm,
        GATED=gated,
        ACT=act,
        RESIDUAL=residual is not None,
        BIAS=bias is not None,
        NEXT=normed is not None,
        PDL=pdl,
        num_warps=plan.warps,
        **_launch(pdl),
    )
    return out


@dataclass(frozen=True)
class Tiling:
    """How a product of many rows is cut: tiles of `rows` of the weight, `columns` at a time,
    `ahead` of them in flight, for up to `batch` rows of x; `splits` programs share the columns."""

    batch: int
    rows: int
    columns: int
    ahead: int
    warps: int
    splits: int = 1


def wide(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    tiling: Tiling,
    bias: Tensor | None = None,
    gated: bool = False,
    act: str = "",
    pdl: bool = False,
) -> Tensor:
    """out (M, N) = x (M, K) · weightᵀ; where columns are split, out (splits, M, N) in float32 are
    their sums, without bias, for `add_normed`."""
    if tiling.splits > 1 and (gated or bias is not None or out.dtype != torch.float32):
        raise ValueError("sums of split columns are in float32, without gate and bias")
    (m, n), k = out.shape[-2:], weight.shape[1]
    _wide[(triton.cdiv(m, tiling.batch), triton.cdiv(n, tiling.rows), tiling.splits)](
        *(x, weight, out, weight if bias is None else bias, m, n),
        K=k,
        BM=tiling.batch,
        BN=tiling.rows,
        BK=tiling.columns,
        SPLITS=tiling.splits,
        STAGES=tiling.ahead,
        GATED=gated,
        ACT=act,
        BIAS=bias is not None,
        PDL=pdl,
        num_warps=tiling.warps,
        **_launch(pdl),
    )
    return out


def add_normed(
    x: Tensor,
    norms: Sequence[tuple[Norm, Tensor]],
    *,
    eps: float,
    kind: str = "rms",
    parts: Tensor | None = None,
    bias: Tensor | None = None,
    post: Norm | None = None,
    early: bool = False,
    pdl: bool = False,
) -> None:
    """x (M, H) through up to two `norms` of the `kind`, each into a tensor (M, H). `parts`
    (splits, M, H) and a bias are added to x before, in place; where there is `post`, through that
    norm. `early`: who follows reads through no shared memory and starts at once."""
    (m, h), unread = x.shape, (Norm(x, None), x)
    (norm, normed), (other, other_normed) = [*norms, unread, unread][:2]
    _add_normed[(m,)](
        *(x if parts is None else parts, x, x if bias is None else bias),
        *_present(unread[0] if post is None else post),
        *(*_present(norm), normed, *_present(other), other_normed, m, eps),
        H=h,
        BLOCK=triton.next_power_of_2(h),
        SPLITS=0 if parts is None else len(parts),
        BIAS=bias is not None,
        POST=post is not None,
        NORMS=len(norms),
        KIND=kind,
        LATE=starts_late(m) and not early,
        PDL=pdl,
        num_warps=8 if h > 1024 else 4,
        **_launch(pdl),
    )


def _present(norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight and bias, in whose place something stands that is not read where there is none."""
    return norm.weight, norm.weight if norm.bias is None else norm.bias


def _launch(pdl: bool) -> dict:
    return {"launch_pdl": True} if pdl else {}
