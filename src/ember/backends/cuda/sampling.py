"""Choosing the next tokens on the device: the semantics of `ember.backends.sampling`, no host.

Contract. `Sampler.run` reads logits (B, V) and leaves each row's next token in `tokens`, writes it
and its log-probabilities (see `backends.sampling.sample`) to row `ticks[b]` of the history, and
counts `ticks`, `steps` and `positions` up.
Every row has parameters of its own. Random numbers are a function (Philox) of the row's seed, its
step and the number of the token, or of its chunk, alone, so a row draws the same whatever else is
in the batch. Top-k, top-p and min-p cut at a value of the logits: tokens that equal the last one
kept are kept too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # logits of one program
BLOCK = 32768  # logits at a time where one program reads a row


@triton.jit
def _measure(
    logits_ptr,  # (B, V)
    inverse_ptr,  # (B,): 1 / temperature
    top_ptr,  # (B, CHUNKS)
    mass_ptr,  # (B, CHUNKS)
    raw_top_ptr,  # (B, CHUNKS)
    raw_mass_ptr,  # (B, CHUNKS)
    V,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Largest scaled logit of every chunk, and its sum of exp(scaled logit - largest); raw too."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row.to(tl.int64) * V + ids, mask=ids < V, other=-float("inf"))
    spot = row * CHUNKS + chunk
    inverse = tl.load(inverse_ptr + row)
    _note_mass(x.to(tl.float32), inverse, spot, top_ptr, mass_ptr, raw_top_ptr, raw_mass_ptr)


@triton.jit
def _mass(x):
    """The largest of x, and the sum of exp(x - largest)."""
    top = tl.max(x, 0)
    # A chunk may hold nothing but -inf, which has no mass.
    return top, tl.sum(tl.exp(x - tl.where(top == -float("inf"), 0.0, top)), 0)


@triton.jit
def _note_mass(x, inverse, spot, top_ptr, mass_ptr, raw_top_ptr, raw_mass_ptr):
    """`_mass` of raw logits and of scaled ones, which are the same at temperature 1."""
    top, mass = _mass(x)
    tl.store(raw_top_ptr + spot, top)
    tl.store(raw_mass_ptr + spot, mass)
    if inverse != 1.0:
        top, mass = _mass(x * inverse)
    tl.store(top_ptr + spot, top)
    tl.store(mass_ptr + spot, mass)


@triton.jit
def _ordered(x):
    """32 bits that are in the order of the float32 numbers x."""
    bits = x.to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return flipped.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _find_cut(
    logits_ptr,  # (B, V)
    inverse_ptr,  # (B,)
    top_ptr,  # (B, CHUNKS)
    top_k_ptr,  # (B,), 0: all
    top_p_ptr,  # (B,), 1: all
    cut_ptr,  # (B,): the least `_ordered` logit that top-k and then top-p keep
    V,
    CHUNKS: tl.constexpr,
    POWER: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,  # of a logit that may differ from one to another
):
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * V
    inverse = tl.load(inverse_ptr + row)
    which = tl.arange(0, POWER)
    tops = tl.load(top_ptr + row * CHUNKS + which, mask=which < CHUNKS, other=-float("inf"))
    top = tl.max(tops, 0)
    lanes = tl.arange(0, BLOCK)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    least = tl.full((), 0, tl.uint32)
    if (top_k > 0) & (top_k < V):  # bit by bit the largest value that top_k logits reach
        for bit in range(BITS):
            trial = least | (tl.full((), 0x80000000, tl.uint32) >> bit)
            count = tl.zeros((BLOCK,), tl.int32)
            for begin in range(0, V, BLOCK):
                ids = begin + lanes
                x = tl.load(logits + ids, mask=ids < V, other=-float("inf")).to(tl.float32)
                count += ((_ordered(x) >= trial) & (ids < V)).to(tl.int32)
            if tl.sum(count, 0) >= top_k:
                least = trial
    if top_p < 1:  # bit by bit the largest value above which there is a mass of top_p
        kept = least
        wanted = tl.full((), 0.0, tl.float32)
        for bit in range(BITS + 1):  # first the mass of all that is left
            trial = kept
            if bit > 0:
                trial = least | (tl.full((), 0x80000000, tl.uint32) >> (bit - 1))
            masses = tl.zeros((BLOCK,), tl.float32)
            for begin in range(0, V, BLOCK):
                ids = begin + lanes
                x = tl.load(logits + ids, mask=ids < V, other=-float("inf")).to(tl.float32)
                order = _ordered(x)
                inside = (order >= trial) & (order >= kept) & (ids < V)
                masses += tl.where(inside, tl.exp(x * inverse - top), 0.0)
            mass = tl.sum(masses, 0)
            if bit == 0:
                wanted = top_p * mass
                least = tl.full((), 0, tl.uint32)
            else:
                if mass >= wanted:
                    least = trial
        least = tl.maximum(least, kept)
    tl.store(cut_ptr + row, least.to(tl.int32, bitcast=True))


@triton.jit
def _clock(random):
    """An exponential number of 32 random bits, exact to float32 near 0, where the winners are."""
    unit = (random.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # in (0, 1]
    small = unit * (1.0 + unit * (0.5 + unit * (0.3333333333 + unit * 0.25)))  # log1p's series
    return tl.where(unit < 0.01, small, -tl.log(1.0 - unit))


@triton.jit
def _kept(x, score, top, row, cut_ptr, min_p_ptr):
    """Scaled logits where top-k, top-p and min-p keep them; `top`: the row's largest."""
    least = top + tl.log(tl.load(min_p_ptr + row))  # log(0) cuts nothing
    cut = tl.load(cut_ptr + row).to(tl.uint32, bitcast=True)
    return tl.where((score >= least) & (_ordered(x) >= cut), score, -float("inf"))


@triton.jit
def _measure_kept(
    logits_ptr,  # (B, V)
    inverse_ptr,  # (B,)
    min_p_ptr,  # (B,)
    top_ptr,  # (B, CHUNKS)
    cut_ptr,  # (B,)
    left_ptr,  # (B, CHUNKS): the mass of what is left, relative to the row's largest
    V,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    POWER: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row.to(tl.int64) * V + ids, mask=ids < V, other=-float("inf"))
    x = x.to(tl.float32)
    which = tl.arange(0, POWER)
    tops = tl.load(top_ptr + row * CHUNKS + which, mask=which < CHUNKS, other=-float("inf"))
    top = tl.max(tops, 0)
    score = _kept(x, x * tl.load(inverse_ptr + row), top, row, cut_ptr, min_p_ptr)
    tl.store(left_ptr + row * CHUNKS + chunk, tl.sum(tl.exp(score - top), 0))


@triton.jit
def _choose(
    logits_ptr,  # (B, V)
    inverse_ptr,  # (B,)
    noise_ptr,  # (B,): 1, or 0 where greedy
    min_p_ptr,  # (B,)
    seed_ptr,  # (B,) int64
    step_ptr,  # (B,)
    cut_ptr,  # (B,)
    top_ptr,  # (B, CHUNKS)
    mass_ptr,  # (B, CHUNKS): where CUT of what is left, as `_measure_kept` finds it
    raw_top_ptr,  # (B, CHUNKS)
    raw_mass_ptr,  # (B, CHUNKS)
    tick_ptr,  # (B,)
    position_ptr,  # (B,)
    token_ptr,  # (B,)
    normalizer_ptr,  # (B,): log of the sum of exp(raw logit)
    tokens_ptr,  # (TICKS, SLOTS): history
    logprobs_ptr,  # (TICKS, SLOTS)
    raw_ptr,  # (TICKS, SLOTS)
    V,
    SLOTS,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    POWER: tl.constexpr,
    CUT: tl.constexpr,
    NOISE: tl.constexpr,
):
    """The token that wins the race: first the chunk by its mass, then a token of that chunk, both
    by Gumbel's trick, argmax of log(mass) - log(clock). So few tokens need a random number."""
    row = tl.program_id(0)
    which = tl.arange(0, POWER)
    there = which < CHUNKS
    tops = tl.load(top_ptr + row * CHUNKS + which, mask=there, other=-float("inf"))
    masses = tl.load(mass_ptr + row * CHUNKS + which, mask=there, other=0.0)
    top = tl.max(tops, 0)
    if not CUT:
        masses *= tl.exp(tops - top)
    lse = top + tl.log(tl.sum(masses, 0))
    raw_tops = tl.load(raw_top_ptr + row * CHUNKS + which, mask=there, other=-float("inf"))
    raw_masses = tl.load(raw_mass_ptr + row * CHUNKS + which, mask=there, other=0.0)
    raw_top = tl.max(raw_tops, 0)
    raw_lse = raw_top + tl.log(tl.sum(raw_masses * tl.exp(raw_tops - raw_top), 0))

    chances = tops
    if NOISE:
        noise, seed = tl.load(noise_ptr + row), tl.load(seed_ptr + row)
        step = tl.load(step_ptr + row).to(tl.uint32, bitcast=True)
        zeros = tl.zeros((POWER,), tl.uint32)
        random, _, _, _ = tl.philox(seed, which.to(tl.uint32), zeros + step, zeros + 1, zeros)
        chances = tl.where(noise > 0, tl.log(masses) - tl.log(_clock(random)), tops)
    chunk = tl.minimum(tl.argmax(chances, 0), CHUNKS - 1)  # whatever NaN makes of it
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = logits_ptr + row.to(tl.int64) * V
    x = tl.load(logits + ids, mask=ids < V, other=-float("inf")).to(tl.float32)
    inverse = tl.load(inverse_ptr + row)
    score = x * inverse
    if CUT:
        score = _kept(x, score, top, row, cut_ptr, min_p_ptr)
    if NOISE:
        # One number of the generator's four for each of four tokens.
        fours = chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4)
        zero = tl.zeros((CHUNK // 4,), tl.uint32)
        r0, r1, r2, r3 = tl.philox(seed, fours.to(tl.uint32), zero + step, zero, zero)
        random = tl.join(tl.join(r0, r2), tl.join(r1, r3)).reshape(CHUNK)
        score -= tl.log(_clock(random)) * noise
    token = tl.minimum(chunk * CHUNK + tl.argmax(score, 0), V - 1)
    logit = tl.load(logits + token).to(tl.float32)
    tick = tl.load(tick_ptr + row)
    spot = tick * SLOTS + row
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(normalizer_ptr + row, raw_lse)
    tl.store(tokens_ptr + spot, token.to(tl.int64))
    tl.store(logprobs_ptr + spot, logit * inverse - lse)
    tl.store(raw_ptr + spot, logit - raw_lse)
    tl.store(tick_ptr + row, tick + 1)
    tl.store(step_ptr + row, tl.load(step_ptr + row) + 1)
    tl.store(position_ptr + row, tl.load(position_ptr + row) + 1)


class Sampler:
    """Samples for the first rows of up to B into a history of up to `length` tokens."""

    def __init__(self, logits: Tensor, tokens: Tensor, positions: Tensor, length: int):
        """`logits` (B, V) are read; `tokens` (B,) int64 and `positions` (B,) int32 are written."""
        rows, vocabulary = logits.shape
        device = logits.device
        self._logits, self._tokens, self._positions = logits, tokens, positions
        self._chunks = triton.cdiv(vocabulary, CHUNK)
        self.inverse = torch.ones(rows, device=device)
        self.noise = torch.zeros(rows, device=device)
        self.min_p = torch.zeros(rows, device=device)
        self.top_p = torch.ones(rows, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self.steps, self.ticks = torch.zeros(2, rows, dtype=torch.int32, device=device)
        self.history = torch.zeros(length, rows, dtype=torch.int64, device=device)
        self.logprobs, self.raw_logprobs = torch.zeros(2, length, rows, device=device)
        self.alternatives: dict[int, tuple[Tensor, Tensor]] = {}  # n: ids and values, with history
        self._normalizers = torch.zeros(rows, device=device)
        self._cut = torch.zeros(rows, dtype=torch.int32, device=device)
        chunks = torch.zeros(5, rows, self._chunks, device=device)
        self._tops, self._masses, self._raw_tops, self._raw_masses, self._left = chunks

    def keep_all(self) -> None:
        """Undoes the cut of an earlier ranked run, for runs that are not ranked."""
        self._cut.zero_()

    def run(
        self,
        *,
        noise: bool,
        cut: bool,
        ranked: bool,
        rows: int | None = None,
        alternatives: int = 0,
    ) -> None:
        """`noise`: some row is not greedy; `cut`: some has top-k, top-p or min-p; `ranked`: one of
        the first two; `alternatives`: so many of the likeliest tokens are noted as well."""
        slots, vocabulary = self._logits.shape
        rows = slots if rows is None else rows
        power = triton.next_power_of_2(self._chunks)
        grid = (rows, self._chunks)
        _measure[grid](
            *(self._logits, self.inverse, self._tops, self._masses),
            *(self._raw_tops, self._raw_masses, vocabulary),
            CHUNK=CHUNK,
            CHUNKS=self._chunks,
        )
        if ranked:
            _find_cut[(rows,)](
                *(self._logits, self.inverse, self._tops, self.top_k, self.top_p, self._cut),
                vocabulary,
                CHUNKS=self._chunks,
                POWER=power,
                BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
                BITS=16 if self._logits.dtype == torch.bfloat16 else 32,
                num_warps=32,
            )
        if cut:
            _measure_kept[grid](
                *(self._logits, self.inverse, self.min_p, self._tops, self._cut, self._left),
                vocabulary,
                CHUNK=CHUNK,
                CHUNKS=self._chunks,
                POWER=power,
            )
        _choose[(rows,)](
            *(self._logits, self.inverse, self.noise, self.min_p, self.seeds, self.steps),
            *(self._cut, self._tops, self._left if cut else self._masses),
            *(self._raw_tops, self._raw_masses, self.ticks, self._positions, self._tokens),
            *(self._normalizers, self.history, self.logprobs, self.raw_logprobs),
            *(vocabulary, slots),
            CHUNK=CHUNK,
            CHUNKS=self._chunks,
            POWER=power,
            CUT=cut,
            NOISE=noise,
        )
        if alternatives:
            self._note_alternatives(rows, alternatives)

    def _note_alternatives(self, rows: int, count: int) -> None:
        values, ids = self._logits[:rows].float().topk(count)
        place = (self.ticks[:1] - 1).long()  # `_choose` has counted on
        for found, kept in zip(
            (ids, values - self._normalizers[:rows, None]), self._kept(count), strict=True
        ):
            kept[:, :rows].index_copy_(0, place, found[None])

    def _kept(self, count: int) -> tuple[Tensor, Tensor]:
        if count not in self.alternatives:
            shape, device = (*self.history.shape, count), self.history.device
            self.alternatives[count] = (
                torch.zeros(shape, dtype=torch.int64, device=device),
                torch.zeros(shape, device=device),
            )
        return self.alternatives[count]
