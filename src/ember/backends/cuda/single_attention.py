"""Attention of single queries: of heads that have keys of their own, where no rows share a prompt.

Contract. As `attention`, whose launcher chooses it for such rows. A query is too little for tensor
cores, which would want fifteen more and take keys and values through shared memory: here they stay
in the registers that they are read into. Programs are of one warp, which waits for no other, and
each place of a block of keys has a softmax of its own; these are brought together at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.group_attention import load_within, memory_of, task_of, turned, within

SINGLE_BLOCK = 8  # keys at a time


@triton.jit
def _block(base, values, begin, stop, D: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """Keys and values from `begin` on, those before `stop`, both in halves (BLOCK, PAIRS)."""
    HALF: tl.constexpr = D // 2
    pair, places = tl.arange(0, PAIRS)[None, :], (begin + tl.arange(0, BLOCK))[:, None]
    seen, at = within(places < stop, pair, HALF, PAIRS), places * D + pair
    return (
        tl.load(base + at, mask=seen, other=0.0),
        tl.load(base + at + HALF, mask=seen, other=0.0),
        tl.load(values + at, mask=seen, other=0.0),
        tl.load(values + at + HALF, mask=seen, other=0.0),
    )


@triton.jit
def attend_single(
    qkv_ptr,  # (B, 3 H D)
    prompts_ptr,  # (2, H, T, D), one layer
    rows_ptr,  # (2, R, H, W, D), one layer
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32
    norms_ptr,  # (2, D): of queries and keys, where NORM
    position_ptr,  # (B,): of the new token in its sequence
    shared_ptr,  # (B,): tokens of the prompt
    members_ptr,  # (GROUPS,): the row that reads each prompt, -1 for none
    starts_ptr,  # (GROUPS,): where the prompt lies in the arena
    lengths_ptr,  # (GROUPS,): tokens of it
    out_ptr,  # (B, H, SHARED_PARTS + OWN_PARTS, D) float32
    lse_ptr,  # (B, H, SHARED_PARTS + OWN_PARTS) float32, base 2
    SLOTS,  # R
    T,
    W,
    scale,  # log2(e) / sqrt(D)
    eps,
    GROUPS: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
    WINDOW: tl.constexpr,  # keys seen, the new one included; 0: all
    BLOCK: tl.constexpr,  # keys at a time
    SHARED_PARTS: tl.constexpr,
    OWN_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,  # norms multiply by 1 + weight
    LATE: tl.constexpr,  # who follows starts when the kernel before has ended
    PDL: tl.constexpr,
):
    if PDL and not LATE:
        gdc_launch_dependents()
    HALF: tl.constexpr = D // 2
    PARTS: tl.constexpr = (SHARED_PARTS if GROUPS > 0 else 0) + OWN_PARTS
    head, task = tl.program_id(0), tl.program_id(1)
    pair, keys = tl.arange(0, PAIRS)[None, :], tl.arange(0, BLOCK)

    # What this program reads: a part of a prompt, or of what a row has of its own.
    on_prompt, group, row, part, parts, slot = task_of(task, GROUPS, SHARED_PARTS, OWN_PARTS)
    row = tl.where(on_prompt, tl.load(members_ptr + group), row)
    if row < 0:
        return
    position = tl.load(position_ptr + row).to(tl.int32)
    own = position - tl.load(shared_ptr + row).to(tl.int32)
    length = tl.where(on_prompt, tl.load(lengths_ptr + group).to(tl.int32), own)
    start = 0
    if WINDOW > 0:
        oldest = position - WINDOW + 1 - tl.where(on_prompt, 0, position - own)
        start = tl.minimum(tl.maximum(oldest, 0), length)
    size = tl.cdiv(tl.cdiv(length - start, parts), BLOCK) * BLOCK
    start += part * size
    stop = tl.minimum(start + size, length)
    begin, memory = tl.load(starts_ptr + group), (prompts_ptr, rows_ptr, SLOTS, T, W)
    base, values = memory_of(on_prompt, begin, row, head, *memory, H, D)
    k1, k2, v1, v2 = _block(base, values, start, stop, D, PAIRS, BLOCK)
    if PDL:
        gdc_wait()
        if LATE:
            gdc_launch_dependents()

    kind = rows_ptr.dtype.element_ty
    here, one = position + tl.zeros((1,), tl.int32), tl.zeros((1, 1), tl.int32)
    query = qkv_ptr + (row * 3 * H + head) * D + one
    how = (norms_ptr, cos_ptr, sin_ptr, here)
    a, b = turned(query, *how, D, ROTATED, PAIRS, NORM, OFFSET, eps)
    q1, q2 = a.to(kind).to(tl.float32), b.to(kind).to(tl.float32)  # (1, PAIRS)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    acc1, acc2 = tl.zeros((BLOCK, PAIRS), tl.float32), tl.zeros((BLOCK, PAIRS), tl.float32)
    if (on_prompt == 0) & (part == 0):  # the new token as well, at the first place
        key, first = query + H * D, keys == 0
        how = (norms_ptr + D, cos_ptr, sin_ptr, here)
        c, d = turned(key, *how, D, ROTATED, PAIRS, NORM, OFFSET, eps)
        c, d = c.to(kind), d.to(kind)
        newv1 = load_within(key + H * D + pair, pair, HALF, PAIRS)
        newv2 = load_within(key + H * D + HALF + pair, pair, HALF, PAIRS)
        there = pair < HALF
        tl.store(base + own * D + pair, c, mask=there)
        tl.store(base + own * D + HALF + pair, d, mask=there)
        tl.store(values + own * D + pair, newv1, mask=there)
        tl.store(values + own * D + HALF + pair, newv2, mask=there)
        score = tl.sum(q1 * c.to(tl.float32) + q2 * d.to(tl.float32)) * scale
        best = tl.where(first, score, best)
        mass = tl.where(first, 1.0, mass)
        acc1 = tl.where(first[:, None], newv1.to(tl.float32), acc1)
        acc2 = tl.where(first[:, None], newv2.to(tl.float32), acc2)

    for begin in range(start, stop, BLOCK):
        # The next keys and values are on their way while these are used.
        next1, next2, next3, next4 = _block(base, values, begin + BLOCK, stop, D, PAIRS, BLOCK)
        scores = tl.sum(k1.to(tl.float32) * q1 + k2.to(tl.float32) * q2, 1) * scale
        scores = tl.where(begin + keys < stop, scores, -float("inf"))
        top = tl.maximum(best, scores)
        level = tl.where(top == -float("inf"), 0.0, top)
        kept, share = tl.exp2(best - level), tl.exp2(scores - level)
        best, mass = top, mass * kept + share
        acc1 = acc1 * kept[:, None] + v1.to(tl.float32) * share[:, None]
        acc2 = acc2 * kept[:, None] + v2.to(tl.float32) * share[:, None]
        k1, k2, v1, v2 = next1, next2, next3, next4

    spot = (row * H + head) * PARTS + slot
    top = tl.max(best, 0)
    share = tl.exp2(best - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(mass * share, 0)
    tl.store(lse_ptr + spot, tl.where(total > 0, top + tl.log2(total), -float("inf")))
    if total > 0:
        out = out_ptr + spot * D + tl.arange(0, PAIRS)
        there = tl.arange(0, PAIRS) < HALF
        tl.store(out, tl.sum(acc1 * share[:, None], 0) / total, mask=there)
        tl.store(out + HALF, tl.sum(acc2 * share[:, None], 0) / total, mask=there)
