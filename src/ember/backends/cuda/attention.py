"""Attention of one new token a row over its prompt, which several rows may share, and its own.

Contract. `Attention` norms and rotates the new queries and keys, writes the new keys and values
into the rows' own memory, and gives what each query attends to. Which rows share which prompt,
where it lies in the arena and how long it is are tables on the device, so that a recorded graph
stays valid while rows are refilled: a group is a run of the arena and the rows that read it, once
for all of them. What follows the prompt, a row reads from its own memory. Few rows read both in
parts by programs of their own, which all start at once, single queries without tensor cores (see
`single_attention`); many in one loop (`group_attention`). A part's result and log-sum-exp are
merged afterwards, in the order of the parts. A row's result depends on lengths, the numbers of
parts and its place in its group alone, not on other rows.

Heads of any even number of dimensions are padded to a power of 2 in a program, not in memory. Keys
that have left a layer's window are not read, but for those that another row of the group sees.

Shapes: B rows, R rows of memory, Hq and Hkv heads, G = Hq / Hkv, D head dimension, T tokens of the
arena, W tokens of a row's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ember.backends.cuda.group_attention import (
    NEW,
    absorb,
    attend_groups,
    load_within,
    memory_of,
    task_of,
    turned,
    within,
)
from ember.backends.cuda.products import FEW_ROWS, starts_late
from ember.backends.cuda.single_attention import SINGLE_BLOCK, attend_single
from ember.model.architecture import Architecture
from ember.model.decoder import rotary_tables

SHARED_PARTS, OWN_PARTS = 16, 4  # of the prompt, and of what follows it, at the most
SINGLE_PARTS, SINGLE_PROGRAMS = 48, 1536  # of single queries: all run at once
QUERIES = 64  # the most rows of queries in one program
FEW_PROGRAMS, FEW_BLOCK = 256, 64  # more parts only make more to merge


class Cut(NamedTuple):
    """How programs read in groups: `block` keys at a time, `stages` of them on their way."""

    block: int
    stages: int
    warps: int


# Two such programs fit on a multiprocessor, and 256 are what an H200 runs at once (docs/engine.md).
LONG, SHORT, LEAST, PROGRAMS = Cut(64, 3, 4), Cut(32, 3, 4), Cut(16, 2, 4), 256


@triton.jit
def _attend(
    qkv_ptr,  # (B, (Hq + 2 Hkv) D)
    prompts_ptr,  # (2, Hkv, T, D), one layer
    rows_ptr,  # (2, R, Hkv, W, D), one layer
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,  # (positions, D / 2) float32
    norms_ptr,  # (2, D): of queries and keys, where NORM
    position_ptr,  # (B,): of the new token in its sequence
    shared_ptr,  # (B,): tokens of the prompt
    members_ptr,  # (GROUPS, PER): rows of each group, -1 for none
    starts_ptr,  # (GROUPS,): where its prompt lies in the arena
    lengths_ptr,  # (GROUPS,): tokens of it
    out_ptr,  # (B, Hq, SHARED_PARTS + OWN_PARTS, D) float32
    lse_ptr,  # (B, Hq, SHARED_PARTS + OWN_PARTS) float32, base 2
    SLOTS,  # R
    T,
    W,
    scale,  # log2(e) / sqrt(D)
    eps,
    GROUPS: tl.constexpr,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,  # of the D dimensions of a head, the first ones
    PAIRS: tl.constexpr,  # a power of 2 no smaller than D / 2
    WINDOW: tl.constexpr,  # keys seen, the new one included; 0: all
    R: tl.constexpr,  # rows of queries, a power of 2
    PER: tl.constexpr,  # candidates of one program
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
    G: tl.constexpr = HQ // HKV
    HALF: tl.constexpr = D // 2
    PARTS: tl.constexpr = (SHARED_PARTS if GROUPS > 0 else 0) + OWN_PARTS
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    head = tl.program_id(0)
    task = tl.program_id(1)
    lane = tl.arange(0, R)
    pair, dims = tl.arange(0, PAIRS)[None, :], tl.arange(0, 2 * PAIRS)[None, :]
    keys = tl.arange(0, BLOCK)

    # What this program reads: a part of a prompt for some candidates, or of a row for itself.
    on_prompt, group, source, part, parts, slot = task_of(task, GROUPS, SHARED_PARTS, OWN_PARTS)
    member = tl.load(
        members_ptr + group * PER + lane // G, mask=on_prompt & (lane < PER * G), other=-1
    )
    row = tl.where(on_prompt, member, source)  # (R,)
    used = tl.where(on_prompt, member >= 0, lane < G)
    row = tl.where(used, row, source)
    position = tl.load(position_ptr + source).to(tl.int32)
    own = position - tl.load(shared_ptr + source).to(tl.int32)
    length = tl.where(on_prompt, tl.load(lengths_ptr + group).to(tl.int32), own)
    start, left = 0, length
    if WINDOW > 0:  # the oldest key that any of these rows sees
        places = tl.load(position_ptr + row).to(tl.int32)
        oldest = tl.min(tl.where(used, places, 1 << 30), 0) - WINDOW + 1
        oldest -= tl.where(on_prompt, 0, position - own)
        start = tl.minimum(tl.maximum(oldest, 0), length)
        left = length - start
    size = tl.cdiv(tl.cdiv(left, parts), 16) * 16  # whole blocks would leave parts without keys
    start += part * size
    stop = tl.minimum(start + size, length)
    new = (on_prompt == 0) & (part == 0)  # this program has the new token as well

    begin, memory = tl.load(starts_ptr + group), (prompts_ptr, rows_ptr, SLOTS, T, W)
    base, values = memory_of(on_prompt, begin, source, head, *memory, HKV, D)
    stands = tl.load(position_ptr + row)
    # The first keys and values are asked for before the queries are there.
    seen = (start + keys < stop)[:, None]
    halves = within(seen, pair, HALF, PAIRS)
    whole = within(seen, dims, D, 2 * PAIRS)
    at = (start + keys)[:, None] * D
    k1 = tl.load(base + at + pair, mask=halves, other=0.0)  # (BLOCK, PAIRS)
    k2 = tl.load(base + at + HALF + pair, mask=halves, other=0.0)
    v = tl.load(values + at + dims, mask=whole, other=0.0)  # (BLOCK, D or more)
    if PDL:
        gdc_wait()
        if LATE:
            gdc_launch_dependents()

    kind = rows_ptr.dtype.element_ty
    spots = qkv_ptr + row[:, None] * WIDTH + (head * G + lane % G)[:, None] * D
    tables = cos_ptr, sin_ptr
    a, b = turned(spots, norms_ptr, *tables, stands, D, ROTATED, PAIRS, NORM, OFFSET, eps)
    q1, q2 = a.to(kind), b.to(kind)

    best = tl.full((R,), -float("inf"), tl.float32)
    mass = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, 2 * PAIRS), tl.float32)
    if new:
        one = tl.zeros((1, 1), tl.int32)
        place, norm = qkv_ptr + source * WIDTH + (HQ + head) * D + one, norms_ptr + D
        here = position + tl.zeros((1,), tl.int32)
        c, d = turned(place, norm, *tables, here, D, ROTATED, PAIRS, NORM, OFFSET, eps)
        new1, new2 = c.to(kind), d.to(kind)  # (1, PAIRS)
        newv = load_within(place + HKV * D + dims, dims, D, 2 * PAIRS)
        tl.store(base + own * D + pair, new1, mask=pair < HALF)
        tl.store(base + own * D + HALF + pair, new2, mask=pair < HALF)
        tl.store(values + own * D + dims, newv, mask=dims < D)
        best = tl.sum(q1.to(tl.float32) * new1.to(tl.float32), 1)
        best = (best + tl.sum(q2.to(tl.float32) * new2.to(tl.float32), 1)) * scale
        mass = tl.full((R,), 1.0, tl.float32)
        acc += newv.to(tl.float32)

    for begin in range(start, stop, BLOCK):
        # The next keys and values are on their way while these are used.
        coming = (begin + BLOCK + keys < stop)[:, None]
        at = (begin + BLOCK + keys)[:, None] * D
        halves = within(coming, pair, HALF, PAIRS)
        whole = within(coming, dims, D, 2 * PAIRS)
        next1 = tl.load(base + at + pair, mask=halves, other=0.0)
        next2 = tl.load(base + at + HALF + pair, mask=halves, other=0.0)
        next_v = tl.load(values + at + dims, mask=whole, other=0.0)
        allowed = (begin + keys < stop)[None, :]
        if WINDOW > 0:
            young = (begin + keys)[None, :] > (stands - WINDOW)[:, None]
            allowed = allowed & (young | (on_prompt == 0))
        best, mass, acc = absorb(q1, q2, k1, k2, v, allowed, scale, best, mass, acc)
        k1, k2, v = next1, next2, next_v

    spots = (row * HQ + head * G + lane % G) * PARTS + slot  # (R,)
    lse = tl.where(mass > 0, best + tl.log2(mass), -float("inf"))
    tl.store(lse_ptr + spots, lse, mask=used)
    if (stop > start) | new:
        out = acc / mass[:, None]
        there = within(used[:, None], dims, D, 2 * PAIRS)
        tl.store(out_ptr + spots[:, None] * D + dims, out, mask=there)


@triton.jit
def _merge(
    parts_ptr,  # (N, PARTS, D) float32
    lse_ptr,  # (N, PARTS) float32, base 2
    out_ptr,  # (N, D)
    N,  # B · Hq
    D: tl.constexpr,
    WIDE: tl.constexpr,  # a power of 2 no smaller than D
    PARTS: tl.constexpr,
    POWER: tl.constexpr,
    HEADS: tl.constexpr,  # of one program
    LATE: tl.constexpr,  # as in `_attend`
    PDL: tl.constexpr,
):
    if PDL:
        if not LATE:
            gdc_launch_dependents()
        gdc_wait()
        if LATE:
            gdc_launch_dependents()
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    part = tl.arange(0, POWER)
    dims = tl.arange(0, WIDE)
    places = head[:, None] * PARTS + part[None, :]
    there = (head < N)[:, None] & (part < PARTS)[None, :]
    lse = tl.load(lse_ptr + places, mask=there, other=-float("inf"))  # (HEADS, POWER)
    seen = within(there[:, :, None], dims[None, None, :], D, WIDE)
    found = tl.load(parts_ptr + places[:, :, None] * D + dims[None, None, :], mask=seen, other=0.0)
    top = tl.max(lse, 1)
    shares = tl.exp2(lse - tl.where(top == -float("inf"), 0.0, top)[:, None])
    # Empty parts have written nothing: what lies in their memory must not count.
    found = tl.where((shares > 0)[:, :, None], found, 0.0)
    out = tl.sum(found * shares[:, :, None], 1) / tl.sum(shares, 1)[:, None]
    spots = head[:, None] * D + dims[None, :]
    there = within((head < N)[:, None], dims[None, :], D, WIDE)
    tl.store(out_ptr + spots, out.to(out_ptr.dtype.element_ty), mask=there)


@dataclass(frozen=True)
class Sharing:
    """Which rows read which prompt: what a recorded graph is made for.

    `groups` of up to `per` rows each; their tables are on the device.
    """

    groups: int
    per: int


class Tables:
    """What the device looks up of a batch: of rows (R,) the `position` of the new token and the
    length of their prompt, `shared`, 0 where there is none; and the groups. They lie side by side,
    so that one copy brings them all."""

    def __init__(self, slots: int, device: torch.device):
        self._slots = -(-slots // 4) * 4  # each begins at 16 bytes
        self._all = torch.zeros(self._slots * (4 + QUERIES), dtype=torch.int32, device=device)
        columns = self._all[: 4 * self._slots].view(4, -1)[:, :slots]
        self.position, self.shared, self.starts, self.lengths = columns
        self.members = self._all[4 * self._slots :].fill_(-1)

    def fill(
        self,
        position: Sequence[int],
        shared: Sequence[int],
        groups: Sequence[tuple[int, int, Sequence[int]]],
        per: int,
    ) -> None:
        """Rows' positions and lengths of their prompts; groups of (start, length, rows)."""
        starts, lengths = ([group[n] for group in groups] for n in (0, 1))
        columns = (position, shared, starts, lengths)
        numbers = [n for each in columns for n in [*each, *[0] * (self._slots - len(each))]]
        rows = [[*rows, *[-1] * (per - len(rows))] for _, _, rows in groups]
        upload(self._all, [*numbers, *(row for group in rows for row in group)])


def upload(target: Tensor, values: Sequence) -> None:
    """Copies numbers to the beginning of a tensor without waiting for the device."""
    if not len(values):
        return
    source = torch.tensor(values, dtype=target.dtype)
    if target.is_cuda:
        source = source.pin_memory()
    target[: len(values)].copy_(source, non_blocking=True)


def shared_memory(device: torch.device) -> int:
    """Bytes that one program may have on a multiprocessor."""
    if device.type != "cuda":
        return 2**30  # the interpreter has no such bound
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def head_pairs(dim: int) -> int:
    """Pairs of dimensions with which a program holds a head: a power of 2, 16 at the least, of
    which tensor cores take a product."""
    return max(16, triton.next_power_of_2(dim // 2))


def kinds_of_tables(arch: Architecture, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
    """cos and sin (T, D / 2), in float32, for positions (T,) in layers of each kind (see
    `Architecture.rope_is_local`); 1 and 0 for pairs that are not rotated."""
    found, still = {}, (arch.head_dim - arch.rotary_dim) // 2
    for local in sorted({arch.rope_is_local(layer) for layer in range(arch.num_layers)}):
        cos, sin = (
            table[0, :, 0] for table in rotary_tables(arch, positions, torch.float32, local=local)
        )
        found[local] = F.pad(cos, (0, still), value=1.0), F.pad(sin, (0, still))
    return found


class Attention:
    """Attention over `rows` (L, 2, R, Hkv, W, D), and over `prompts` (L, 2, Hkv, T, D) if given."""

    def __init__(
        self, arch: Architecture, rows: Tensor, positions: int, prompts: Tensor | None = None
    ):
        """`positions`: the most tokens of a sequence."""
        self._arch, self._rows = arch, rows
        self._arena = rows if prompts is None else prompts  # which nobody reads without groups
        self._heads, self._pairs = arch.num_heads, head_pairs(arch.head_dim)
        at = torch.arange(positions, device=rows.device)
        self._tables = kinds_of_tables(arch, at)
        self._group = arch.groups
        self.most = max(1, QUERIES // self._group)  # rows of a group
        self.tables = Tables(rows.shape[2], rows.device)
        self._shared_memory = shared_memory(rows.device)
        self._partial: dict[tuple, tuple[Tensor, Tensor]] = {}

    def parts(self, rows: int, sharing: Sharing) -> tuple[int, int]:
        """Of a prompt and of a row's own, where rows are few or share nothing."""
        heads = self._heads // self._group
        if self.single(rows, sharing):
            most = SINGLE_PROGRAMS // heads
            own = _parts_of(self._rows, most // rows)
            if not sharing.groups:
                return 0, own
            return _parts_of(self._arena, (most - rows * own) // sharing.groups), own
        if not sharing.groups:
            return 0, max(1, min(SHARED_PARTS, FEW_PROGRAMS // (rows * heads)))
        blocks = triton.cdiv(self._rows.shape[-2], FEW_BLOCK)
        shared = _power(max(1, min(SHARED_PARTS, FEW_PROGRAMS // (sharing.groups * heads))))
        own = _power(max(1, min(OWN_PARTS, blocks, FEW_PROGRAMS // (rows * heads))))
        if rows == own == 1 < shared and (sharing.groups * shared + 1) * heads > FEW_PROGRAMS:
            shared -= 1  # or the row's own would be read after all else
        return shared, own

    def single(self, rows: int, sharing: Sharing) -> bool:
        """Whether each program has one query."""
        few = rows <= FEW_ROWS or not sharing.groups
        return few and self._group == sharing.per == 1

    def group_parts(self, sharing: Sharing) -> int:
        """Of what a group reads: as many as keep the device busy."""
        pairs = sharing.groups * (self._heads // self._group)
        return _power(max(1, min(SHARED_PARTS, PROGRAMS // pairs)))

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        norms: Tensor | None,
        out: Tensor,
        sharing: Sharing,
        *,
        eps: float,
        late: bool = False,
        early: bool = False,
        pdl: bool = False,
    ) -> Tensor:
        """out (B, Hq D) for qkv (B, (Hq + 2 Hkv) D), whose rows and groups are those of `tables`.

        `norms` (2, D) are the weights of the query and key norms. `late`: who follows starts only
        when the kernel before has ended, and may read what that left without waiting for this one.
        `early`: who follows reads through no shared memory and starts at once.
        """
        arch, (_, _, slots, kv_heads, width, dim) = self._arch, self._rows.shape
        batch, tables, launch = len(qkv), self.tables, {"launch_pdl": True} if pdl else {}
        heads = {"HQ": self._heads, "HKV": kv_heads, "PER": sharing.per}
        heads["R"] = max(16, triton.next_power_of_2(sharing.per * self._group))
        in_groups = sharing.groups > 0 and batch > FEW_ROWS
        if late and in_groups:
            raise ValueError(f"`late` is for up to {FEW_ROWS} rows, or rows that share nothing")
        if in_groups:
            parts = self.group_parts(sharing)
            tasks, cut = sharing.groups * parts, self._cut(parts)
            kernel, warps = attend_groups, cut.warps
            options = {"BLOCK": cut.block, "STAGES": cut.stages, "PARTS": parts, "NEW": NEW}
        else:
            shared_parts, own_parts = self.parts(batch, sharing)
            tasks = sharing.groups * shared_parts + batch * own_parts
            kernel, warps, parts = _attend, 4, shared_parts + own_parts
            options = {"BLOCK": FEW_BLOCK, "GROUPS": sharing.groups, "LATE": late}
            options |= {"SHARED_PARTS": max(1, shared_parts), "OWN_PARTS": own_parts}
            if self.single(batch, sharing):
                kernel, warps, heads = attend_single, 1, {"H": kv_heads}
                options["BLOCK"] = SINGLE_BLOCK
        whole = in_groups and parts == 1  # nothing to merge
        partial, lse = (out, out) if whole else self._buffers(batch, parts)
        kernel[(kv_heads, tasks)](
            *(qkv, self._arena[layer], self._rows[layer]),
            *self._tables[self._arch.rope_is_local(layer)],
            *(qkv if norms is None else norms, tables.position, tables.shared),
            *(tables.members, tables.starts, tables.lengths, partial, lse),
            *(slots, self._arena.shape[-2], width),
            *(math.log2(math.e) * arch.score_scale, eps),
            D=dim,
            ROTATED=arch.rotary_dim,
            PAIRS=self._pairs,
            WINDOW=arch.window(layer) or 0,
            NORM=norms is not None,
            OFFSET=arch.norm == "rms_offset",
            PDL=pdl,
            num_warps=warps,
            **heads,
            **options,
            **launch,
        )
        if not whole:
            self._merged(partial, lse, out, early, pdl)
        return out

    def _cut(self, parts: int) -> Cut:
        """The longest blocks that have room; short parts have few blocks."""
        key = 2 * self._pairs * self._rows.itemsize
        fitting = (
            cut
            for cut in (LONG, SHORT)
            if 2 * (cut.stages * cut.block + QUERIES) * key <= self._shared_memory
        )
        return next((cut for cut in fitting if parts <= 8 or cut is SHORT), LEAST)

    def _merged(self, partial: Tensor, lse: Tensor, out: Tensor, early: bool, pdl: bool) -> None:
        """The parts together."""
        (batch, heads, parts), launch = lse.shape, {"launch_pdl": True} if pdl else {}
        each = 1 if batch <= FEW_ROWS else 4
        warps = 1 if each == 1 and parts <= 2 * SHARED_PARTS else 4
        _merge[(triton.cdiv(batch * heads, each),)](
            *(partial, lse, out, batch * heads),
            D=partial.shape[-1],
            WIDE=2 * self._pairs,
            PARTS=parts,
            POWER=triton.next_power_of_2(parts),
            HEADS=each,
            LATE=starts_late(batch) and not early,
            PDL=pdl,
            num_warps=warps,
            **launch,
        )

    def _buffers(self, batch: int, parts: int) -> tuple[Tensor, Tensor]:
        if (batch, parts) not in self._partial:
            shape, device = (batch, self._heads, parts), self._rows.device
            self._partial[batch, parts] = (
                torch.zeros(*shape, self._rows.shape[-1], device=device),
                torch.zeros(shape, device=device),
            )
        return self._partial[batch, parts]


def _parts_of(memory: Tensor, most: int) -> int:
    """Of single queries: 32 keys each, where all of them are seen."""
    return max(1, min(SINGLE_PARTS, triton.cdiv(memory.shape[-2], 32), most))


def _power(number: int) -> int:
    """The largest power of 2 that is not larger."""
    return 1 << (number.bit_length() - 1)
