"""One stage's share of the model for one micro-batch: prefill and decoding steps of its layers.

Contract. A first stage takes tokens, a last one gives logits; what passes between them is the
residual stream. Decoding takes the fastest backend that serves the layers. The fast ones' steps
know only whole models. So a later stage is given one whose embedding table is its inbox (row r
"embeds" as what came for row r), an earlier one a head of a few rows that nobody reads.

Shapes: B rows of the micro-batch, T tokens, H hidden, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ember.backends.compiled.native_step import NativeStep
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams, make_generators, row_seed, sample
from ember.backends.select import Case, select
from ember.cache.contiguous import ContiguousCache
from ember.measure.memory import require
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder

UNREAD = 16  # rows of a head that nobody reads: the least that the kernels are compiled for


def take_layers(decoder: Decoder, layers: range) -> Decoder:
    """A decoder of these layers alone, numbered from 0, which shares all weights with `decoder`."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)  # a module's copy shares the table of its children
    part.layers = nn.ModuleList(decoder.layers[index] for index in layers)
    sliding = tuple(n - layers.start for n in decoder.arch.sliding_layers if n in layers)
    part.arch = replace(decoder.arch, num_layers=len(layers), sliding_layers=sliding)
    return part


class Stage:
    """Layers, KV cache and buffers of one micro-batch; decodes by the decoder.

    `tokens` (B,) are run next by a first stage and were sampled by a last one; `inbox` (B, H) is
    run next by a later stage. Both are fixed memory, for messages and graphs.
    """

    backend = "eager"

    def __init__(self, part: Decoder, rows: int, capacity: int, *, first: bool, last: bool):
        weight = part.embed_tokens.weight
        self.part, self.first, self.last = part, first, last
        needed = rows * capacity * part.arch.kv_bytes_per_token(weight.element_size())
        require(needed, str(weight.device), f"a stage's KV cache of {rows} x {capacity} tokens")
        self.cache = ContiguousCache(part.arch, rows, capacity, weight.device, weight.dtype)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.inbox = weight.new_zeros(rows, part.arch.hidden_size)

    def begin(self, sampling: SamplingParams, names: Sequence[tuple[int, int]]) -> None:
        """Forgets what was run; `names`: (prompt key, candidate) of each row, for random numbers.

        Everything that is recorded or compiled on first use is, so that a run does not wait.
        """
        self.cache.reset()
        self._sampling, device = sampling, self.tokens.device
        self._generators = [] if sampling.greedy else make_generators(sampling, names, device)
        self._history: list[tuple[Tensor, Tensor]] = []

    def prefill(self, x: Tensor, *, ends: bool) -> Tensor | None:
        """Runs tokens (B, T) or hidden states (B, T, H) after what is cached.

        A last stage gives logits (B, V) where a prompt ends and nothing elsewhere, another one
        hidden states (B, T, H).
        """
        given = {"tokens": x} if self.first else {"hidden": x}
        if not self.last:
            return self.part(**given, cache=self.cache)
        hidden = self.part(**given, cache=self.cache, last=1)
        return self.part.logits(hidden)[:, 0] if ends else None

    def decode(self) -> Tensor:
        """Runs `tokens`, or `inbox`, at the next position; logits (B, V) or hidden states (B, H).

        The result is overwritten by the next call.
        """
        given = {"tokens": self.tokens[:, None]} if self.first else {"hidden": self.inbox[:, None]}
        hidden = self.part(**given, cache=self.cache)
        return self.part.logits(hidden)[:, 0] if self.last else hidden[:, 0]

    def sample(self, logits: Tensor) -> None:
        """Chooses `tokens` from the logits of a prefill or of the last `decode`."""
        tokens, logprobs = sample(logits, self._sampling, self._generators)[:2]
        self.tokens.copy_(tokens)
        self._history.append((tokens, logprobs))

    def sampled(self) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probabilities of each row since `begin`."""
        tokens, logprobs = zip(*self._history, strict=True)
        return torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist()

    def _as_whole_model(self, laid: bool) -> tuple[Architecture, PackedDecoder]:
        """What a step of whole models runs in place of the stage's layers; `laid`: of CUDA's
        kernels."""
        arch, weights = self.part.arch, PackedDecoder(self.part, laid=laid)
        if not self.first:
            arch, weights.embedding = replace(arch, scaled_embedding=False), self.inbox
        if not self.last:
            arch = replace(arch, vocab_size=UNREAD)
            weights.head = weights.embedding.new_zeros(UNREAD, weights.head.shape[1])
        return arch, weights


class CompiledStage(Stage):
    """Decodes by compiled code."""

    backend = "compiled"

    def __init__(self, part: Decoder, rows: int, capacity: int, **ends: bool):
        super().__init__(part, rows, capacity, **ends)
        whole = self._as_whole_model(laid=False)
        self._step = NativeStep(*whole, self.cache.kv, self.cache.capacity)
        self._inputs = self.tokens if self.first else torch.arange(rows)

    def decode(self) -> Tensor:
        position = self.cache.length(0)
        self.cache.advance(1)
        logits = self._step(self._inputs, position)
        return logits if self.last else self._step.x.to(self.cache.kv.dtype)


class KernelStage(Stage):
    """Decodes and samples by `KernelStep`: CUDA graphs of Triton's kernels."""

    backend = "kernels"

    def __init__(self, part: Decoder, rows: int, capacity: int, **ends: bool):
        super().__init__(part, rows, capacity, **ends)
        from ember.backends.cuda.step import KernelStep  # imports Triton

        whole = self._as_whole_model(laid=True)
        self._loop = KernelStep(*whole, self.cache.kv, self.cache.capacity)
        self._rows = torch.arange(rows, device=self.tokens.device)
        self._count = 0
        if self.cache.kv.is_cuda:
            self._loop.capture()

    def begin(self, sampling: SamplingParams, names: Sequence[tuple[int, int]]) -> None:
        self.cache.reset()
        loop, rows = self._loop, len(self._rows)
        params, seeds = [sampling] * rows, [row_seed(sampling.seed, *name) for name in names]
        # A trial of both graphs; what it leaves in the cache at position 0 the prefill overwrites.
        loop.tokens.zero_()
        loop.stand(-1)
        loop.draw(params, seeds, [0] * rows)
        loop.rewind()
        if self.last:
            loop.logits.zero_()
            loop.sample()
        self._restore()
        loop.stand(0)
        loop.advance()
        loop.draw(params, seeds, [0] * rows)
        loop.rewind()
        self._count = 0

    def decode(self) -> Tensor:
        loop = self._loop
        if self.first:
            loop.tokens.copy_(self.tokens)
        if not self.last:  # a last stage's sampling moves the position on
            loop.stand(self.cache.length(0))
        self.cache.advance(1)
        loop.advance()
        return loop.logits if self.last else loop.x

    def sample(self, logits: Tensor) -> None:
        loop = self._loop
        if not self._count:  # all else is as `begin` left it: seeds would make the host wait
            loop.logits.copy_(logits)
            loop.stand(self.cache.length(0) - 1)
        loop.sample()
        self._count += 1
        self.tokens.copy_(loop.tokens)
        self._restore()

    def sampled(self) -> tuple[list[list[int]], list[list[float]]]:
        tokens, logprobs = self._loop.sampled(self._count, len(self._rows))[:2]
        return tokens.t().tolist(), logprobs.t().tolist()

    def _restore(self) -> None:
        """What a later stage "embeds": its rows' places in the inbox."""
        if not self.first:
            self._loop.tokens.copy_(self._rows)


STAGES = {kind.backend: kind for kind in (Stage, CompiledStage, KernelStage)}


def make_stage(
    part: Decoder, rows: int, capacity: int, *, backend: str | None = None, **ends: bool
) -> Stage:
    """A stage of a part (see `take_layers`), `first`, `last`, both or neither.

    `capacity`: the most tokens of a row; `backend`: by which it decodes, the fastest that serves by
    default.
    """
    name = select(Case.of(part, rows=rows), backend).name
    return STAGES[name](part, rows, capacity, **ends)
