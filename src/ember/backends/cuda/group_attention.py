"""Attention of many rows in groups: one pass over what a group of rows reads together and alone.

Contract. As `attention`, whose launcher chooses it where many rows keep the device busy. A program
has all query heads of a KV head for all rows of a group, and a part of the group's work: so many
keys of the prompt, and what some of its rows have of their own, in one loop, so that neither part
waits for the memory twice. A row's result depends on its place in the group, not on other rows.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.heads import absorb, load_head, store_head, times, turned_head, zero_head

NEW = 16  # the fewest keys of a product of the tensor cores


@triton.jit
def attend_groups(
    qkv_ptr,  # (B, (Hq + 2 Hkv) D)
    prompts_ptr,  # (2, Hkv, T, D), one layer
    rows_ptr,  # (2, SLOTS, Hkv, W, D), one layer
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32
    norms_ptr,  # (2, D): of queries and keys, where NORM
    position_ptr,  # (B,): of the new token in its sequence
    shared_ptr,  # (B,): tokens of the prompt
    members_ptr,  # (groups, PER): rows of each group, -1 for none
    starts_ptr,  # (groups,): where its prompt lies in the arena
    lengths_ptr,  # (groups,): tokens of it
    out_ptr,  # (B, Hq, PARTS, D): float32 to be merged, or what is wanted where PARTS is 1
    lse_ptr,  # (B, Hq, PARTS) float32, base 2
    SLOTS,
    T,
    W,
    scale,  # log2(e) / sqrt(D)
    eps,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    WINDOW: tl.constexpr,  # keys seen, the new one included; 0: all
    R: tl.constexpr,  # rows of queries, a power of 2
    PER: tl.constexpr,  # rows of a group, a power of 2
    BLOCK: tl.constexpr,  # keys at a time
    PARTS: tl.constexpr,  # a power of 2
    NEW: tl.constexpr,  # new keys at a time
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,  # norms multiply by 1 + weight
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    G: tl.constexpr = HQ // HKV
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    MINE: tl.constexpr = PER // PARTS if PARTS < PER else 1  # rows whose own tokens are read here
    SHARE: tl.constexpr = PARTS // PER if PARTS > PER else 1  # programs that a row's own are for
    head, task = tl.program_id(0), tl.program_id(1)
    group, part = task // PARTS, task % PARTS
    lane, keys = tl.arange(0, R), tl.arange(0, BLOCK)

    member = tl.load(members_ptr + group * PER + lane // G, mask=lane < PER * G, other=-1)
    used = member >= 0
    if tl.max(member, 0) < 0:  # no such group
        return
    row = tl.where(used, member, 0)
    place, first = tl.arange(0, NEW), part // SHARE * MINE
    mine = tl.load(members_ptr + group * PER + first + place, mask=place < MINE, other=-1)
    here = mine >= 0
    mine = tl.where(here, mine, 0)
    if PDL:
        gdc_wait()
    position = tl.load(position_ptr + mine).to(tl.int32)
    own = position - tl.load(shared_ptr + mine).to(tl.int32)

    # Keys: a part of the prompt, and some rows' own before the new one.
    length = tl.load(lengths_ptr + group).to(tl.int32)
    start, seen_length, own_start, own_seen = 0, length, 0, own
    if WINDOW > 0:  # the oldest key that any row sees, and that each of these sees of its own
        places = tl.load(position_ptr + row).to(tl.int32)
        oldest = tl.min(tl.where(used, places, 1 << 30), 0) - WINDOW + 1
        start = tl.minimum(tl.maximum(oldest, 0), length)
        own_start = tl.maximum(own - WINDOW + 1, 0)
        seen_length, own_seen = length - start, own - own_start
    size = tl.cdiv(tl.cdiv(seen_length, PARTS), BLOCK) * BLOCK
    start += part * size
    stop = tl.minimum(start + size, length)
    prompt_blocks = tl.cdiv(tl.maximum(stop - start, 0), BLOCK)
    own_size = tl.cdiv(tl.cdiv(own_seen, SHARE), BLOCK) * BLOCK
    own_start += part % SHARE * own_size
    own_stop = tl.where(here, tl.minimum(own_start + own_size, own), 0)
    own_blocks = tl.cdiv(tl.max(tl.maximum(own_stop - own_start, 0), 0), BLOCK)

    places = qkv_ptr + row[:, None] * WIDTH + (head * G + lane % G)[:, None] * D
    stands = tl.load(position_ptr + row)[:, None]
    q = turned_head(
        *(places, True, norms_ptr, cos_ptr, sin_ptr, stands),
        *(D, ROTATED, FIRST, REST, NORM, OFFSET, eps),
    )
    best = tl.full((R,), -float("inf"), tl.float32)
    mass = tl.zeros((R,), tl.float32)
    acc = zero_head(R, FIRST, REST)
    plane = SLOTS.to(tl.int64) * HKV * W * D
    if part % SHARE == 0:  # the new tokens of these rows
        source, there = qkv_ptr + mine[:, None] * WIDTH + (HQ + head) * D, here[:, None]
        k = turned_head(
            *(source, there, norms_ptr + D, cos_ptr, sin_ptr, position[:, None]),
            *(D, ROTATED, FIRST, REST, NORM, OFFSET, eps),
        )
        v = load_head(source + HKV * D, there, D, FIRST, REST)
        target = rows_ptr + ((mine.to(tl.int64) * HKV + head) * W + own)[:, None] * D
        store_head(target, k, there, D, FIRST, REST)
        store_head(target + plane, v, there, D, FIRST, REST)
        its = (lane // G)[:, None] == first + place[None, :]
        best, mass, acc = absorb(q, k, v, its & here[None, :], scale, best, mass, acc)

    run = head.to(tl.int64) * T + tl.load(starts_ptr + group).to(tl.int64)
    for step in tl.range(0, prompt_blocks + MINE * own_blocks, num_stages=STAGES):
        on_prompt = step < prompt_blocks
        late = step - prompt_blocks
        which = tl.where(on_prompt, 0, late // tl.maximum(own_blocks, 1))
        block = tl.where(on_prompt, step, late - which * own_blocks)
        chosen = place == which
        slot = tl.sum(tl.where(chosen, mine, 0), 0).to(tl.int64)
        begin = tl.where(on_prompt, start, tl.sum(tl.where(chosen, own_start, 0), 0))
        end = tl.where(on_prompt, stop, tl.sum(tl.where(chosen, own_stop, 0), 0))
        at = begin + block * BLOCK + keys
        seen = at < end
        base = tl.where(on_prompt, prompts_ptr + run * D, rows_ptr + (slot * HKV + head) * W * D)
        values = base + tl.where(on_prompt, T.to(tl.int64) * HKV * D, plane)
        lines, there = at[:, None] * D, seen[:, None]
        k = load_head(base + lines, there, D, FIRST, REST)
        v = load_head(values + lines, there, D, FIRST, REST)
        allowed = seen[None, :] & (on_prompt | (lane // G == first + which))[:, None]
        if WINDOW > 0:
            allowed &= (at[None, :] > stands - WINDOW) | (on_prompt == 0)
        best, mass, acc = absorb(q, k, v, allowed, scale, best, mass, acc)

    spots = (row * HQ + head * G + lane % G) * PARTS + part  # (R,)
    if PARTS > 1:
        lse = tl.where(mass > 0, best + tl.log2(mass), -float("inf"))
        tl.store(lse_ptr + spots, lse, mask=used)
    some = (used & (mass > 0))[:, None]
    store_head(out_ptr + spots[:, None] * D, times(acc, 1 / mass[:, None]), some, D, FIRST, REST)
