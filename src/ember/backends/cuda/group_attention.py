"""Attention of many rows in groups: one pass over what a group of rows reads together and alone.

Contract. As `attention`, whose launcher chooses it where many rows keep the device busy. A program
has all query heads of a KV head for all rows of a group, and a part of the group's work: so many
keys of the prompt, and what some of its rows have of their own, in one loop, so that neither part
waits for the memory twice. A row's result depends on its place in the group, not on other rows.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NEW = 16  # the fewest keys of a product of the tensor cores


@triton.jit
def within(mask, columns, END: tl.constexpr, POWER: tl.constexpr):
    """A mask of rows, and of the first END columns where there are more."""
    if END < POWER:
        mask = mask & (columns < END)
    return mask


@triton.jit
def load_within(places, columns, END: tl.constexpr, POWER: tl.constexpr):
    """What lies in the first END columns, and zeros beyond."""
    if END < POWER:
        found = tl.load(places, mask=columns < END, other=0.0)
    else:
        found = tl.load(places)
    return found


@triton.jit
def task_of(task, GROUPS: tl.constexpr, SHARED_PARTS: tl.constexpr, OWN_PARTS: tl.constexpr):
    """What a program of few rows reads: whether a part of a prompt, of which group, else of which
    row's own; which part, of how many, and its place among a row's."""
    FIRST: tl.constexpr = SHARED_PARTS if GROUPS > 0 else 0
    on_prompt = task < GROUPS * SHARED_PARTS
    own_task = task - GROUPS * SHARED_PARTS
    group = tl.where(on_prompt, task // SHARED_PARTS, 0)
    source = tl.where(on_prompt, 0, own_task // OWN_PARTS)
    part = tl.where(on_prompt, task % SHARED_PARTS, own_task % OWN_PARTS)
    parts = tl.where(on_prompt, SHARED_PARTS, OWN_PARTS)
    return on_prompt, group, source, part, parts, tl.where(on_prompt, part, FIRST + part)


@triton.jit
def memory_of(
    on_prompt, begin, row, head, prompts_ptr, rows_ptr, SLOTS, T, W, HKV: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Where a head's keys and values lie: of a prompt from `begin` on, or of a row's own."""
    run = head.to(tl.int64) * T + begin.to(tl.int64)
    memory = (row.to(tl.int64) * HKV + head) * W
    base = tl.where(on_prompt, prompts_ptr + run * D, rows_ptr + memory * D)
    plane = tl.where(on_prompt, T.to(tl.int64) * HKV, W.to(tl.int64) * (HKV * SLOTS))
    return base, base + plane * D


@triton.jit
def turned(
    lines, norm_ptr, cos_ptr, sin_ptr, position, D: tl.constexpr, ROTATED: tl.constexpr,
    PAIRS: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr, eps,
):  # fmt: skip
    """Heads at lines (R, 1), normed and turned to their positions (R,): their first and second
    halves (R, PAIRS) in float32.

    Halves are those of memory, so that keys are read in long words, whichever dimensions rotate.
    """
    HALF: tl.constexpr = D // 2
    pair = tl.arange(0, PAIRS)[None, :]
    turn = position.to(tl.int64)[:, None] * HALF
    a = load_within(lines + pair, pair, HALF, PAIRS).to(tl.float32)
    b = load_within(lines + HALF + pair, pair, HALF, PAIRS).to(tl.float32)
    factor = tl.full((1, 1), 1.0, tl.float32)
    if NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        there = pair < HALF
        a *= factor * _norm_weight(norm_ptr, pair, there, OFFSET)
        b *= factor * _norm_weight(norm_ptr, pair + HALF, there, OFFSET)
    if ROTATED == D:
        cos = load_within(cos_ptr + turn + pair, pair, HALF, PAIRS)
        sin = load_within(sin_ptr + turn + pair, pair, HALF, PAIRS)
        return a * cos - b * sin, b * cos + a * sin
    else:
        given = norm_ptr, factor, cos_ptr + turn, sin_ptr + turn
        a = _turned_partly(a, lines, pair, *given, HALF, ROTATED, NORM, OFFSET)
        b = _turned_partly(b, lines, pair + HALF, *given, D, ROTATED, NORM, OFFSET)
        return a, b


@triton.jit
def _turned_partly(
    own, lines, dims, norm_ptr, factor, cos_ptr, sin_ptr, END: tl.constexpr, ROTATED: tl.constexpr,
    NORM: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Dimensions (1, PAIRS) of heads, of which those before END are there and those before ROTATED
    turn, each with one that is read again."""
    FIRST: tl.constexpr = ROTATED // 2
    first, turns = dims < FIRST, (dims < ROTATED) & (dims < END)
    other = tl.where(first, dims + FIRST, dims - FIRST)
    mixed = tl.load(lines + other, mask=turns, other=0.0).to(tl.float32)
    if NORM:
        mixed *= factor * _norm_weight(norm_ptr, other, turns, OFFSET)
    pair = tl.where(first, dims, other)
    cos = tl.load(cos_ptr + pair, mask=turns, other=1.0)
    sin = tl.load(sin_ptr + pair, mask=turns, other=0.0)
    return own * cos + tl.where(first, -mixed, mixed) * sin


@triton.jit
def _norm_weight(norm_ptr, dims, there, OFFSET: tl.constexpr):
    weight = tl.load(norm_ptr + dims, mask=there, other=0.0).to(tl.float32)
    if OFFSET:
        weight += 1.0
    return weight


@triton.jit
def absorb(q1, q2, k1, k2, v, allowed, scale, best, mass, acc):
    """Softmax goes on over a block of keys: the largest score of each query so far, the sum of
    exp2(score - largest), and the same sum of values. Where nothing is allowed nothing changes."""
    scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale  # (R, BLOCK)
    scores = tl.where(allowed, scores, -float("inf"))
    top = tl.maximum(best, tl.max(scores, 1))
    level = tl.where(top == -float("inf"), 0.0, top)
    shares = tl.exp2(scores - level[:, None])
    kept = tl.exp2(best - level)
    mass = mass * kept + tl.sum(shares, 1)
    acc = tl.dot(shares.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
    return top, mass, acc


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
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
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
    HALF: tl.constexpr = D // 2
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    MINE: tl.constexpr = PER // PARTS if PARTS < PER else 1  # rows whose own tokens are read here
    SHARE: tl.constexpr = PARTS // PER if PARTS > PER else 1  # programs that a row's own are for
    head, task = tl.program_id(0), tl.program_id(1)
    group, part = task // PARTS, task % PARTS
    lane, pair = tl.arange(0, R), tl.arange(0, PAIRS)[None, :]
    dims, keys = tl.arange(0, 2 * PAIRS)[None, :], tl.arange(0, BLOCK)
    kind = rows_ptr.dtype.element_ty

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

    spots = qkv_ptr + row[:, None] * WIDTH + (head * G + lane % G)[:, None] * D
    stands = tl.load(position_ptr + row)
    tables = cos_ptr, sin_ptr
    a, b = turned(spots, norms_ptr, *tables, stands, D, ROTATED, PAIRS, NORM, OFFSET, eps)
    q1, q2 = a.to(kind), b.to(kind)

    best = tl.full((R,), -float("inf"), tl.float32)
    mass = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, 2 * PAIRS), tl.float32)
    plane = SLOTS.to(tl.int64) * HKV * W * D
    if part % SHARE == 0:  # the new tokens of these rows
        source = qkv_ptr + mine[:, None] * WIDTH + (HQ + head) * D
        halves = within(here[:, None], pair, HALF, PAIRS)
        whole = within(here[:, None], dims, D, 2 * PAIRS)
        norm = norms_ptr + D
        c, d = turned(source, norm, *tables, position, D, ROTATED, PAIRS, NORM, OFFSET, eps)
        new1, new2 = c.to(kind), d.to(kind)  # (NEW, PAIRS)
        newv = tl.load(source + HKV * D + dims, mask=whole, other=0.0)
        target = rows_ptr + ((mine.to(tl.int64) * HKV + head) * W + own)[:, None] * D
        tl.store(target + pair, new1, mask=halves)
        tl.store(target + HALF + pair, new2, mask=halves)
        tl.store(target + plane + dims, newv, mask=whole)
        its = (lane // G)[:, None] == first + place[None, :]
        allowed = its & here[None, :]
        best, mass, acc = absorb(q1, q2, new1, new2, newv, allowed, scale, best, mass, acc)

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
        halves = within(seen[:, None], pair, HALF, PAIRS)
        whole = within(seen[:, None], dims, D, 2 * PAIRS)
        k1 = tl.load(base + at[:, None] * D + pair, mask=halves, other=0.0)
        k2 = tl.load(base + at[:, None] * D + HALF + pair, mask=halves, other=0.0)
        v = tl.load(values + at[:, None] * D + dims, mask=whole, other=0.0)
        allowed = seen[None, :] & (on_prompt | (lane // G == first + which))[:, None]
        if WINDOW > 0:
            allowed &= (at[None, :] > (stands - WINDOW)[:, None]) | (on_prompt == 0)
        best, mass, acc = absorb(q1, q2, k1, k2, v, allowed, scale, best, mass, acc)

    spots = (row * HQ + head * G + lane % G) * PARTS + part  # (R,)
    if PARTS > 1:
        lse = tl.where(mass > 0, best + tl.log2(mass), -float("inf"))
        tl.store(lse_ptr + spots, lse, mask=used)
    some = (used & (mass > 0))[:, None]
    out = (acc / mass[:, None]).to(out_ptr.dtype.element_ty)
    some = within(some, dims, D, 2 * PAIRS)
    tl.store(out_ptr + spots[:, None] * D + dims, out, mask=some)
