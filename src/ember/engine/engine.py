"""The engine: prompts in, completions out, with every phase timed apart.

Contract. The engine knows token ids, not text. Prompts of equal length run as one batch; a prompt
is prefilled once however many candidates it has. Prefill is the decoder itself, decoding the fast
`DecodeStep`. With a prefix cache (`RadixCache`) the longest stored prefix of a prompt is copied
instead of computed, and what was computed is stored; keys are never shared across weights versions.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.cache.contiguous import ContiguousCache
from ember.engine.prefill import Prefill
from ember.engine.sampling import SamplingParams, make_generators, sample
from ember.engine.step import SPLIT, DecodeStep, restored_threads
from ember.measure.clock import PhaseClock
from ember.measure.memory import require
from ember.model.decoder import Decoder
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

KEPT_SLOTS = 3  # batch sizes whose caches and graphs stay in memory
STOP_CHECK = {"cpu": 1, "cuda": 16}  # tokens between looks at what was sampled; each look waits


class BadPrompt(EmberError):
    """A prompt that the engine cannot run; the message says why."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    `logprobs` belong to `tokens` (see `sampling.sample`); `finish_reason` is "stop" or "length";
    `versions` is the weights version that each token was sampled with.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has been run: logits (B, V) of its last token, tokens reused, and its KV."""

    logits: Tensor
    cached_tokens: int
    cache: ContiguousCache


@dataclass
class _Slot:
    """Memory of one batch size, and what runs on it."""

    cache: ContiguousCache
    step: DecodeStep
    prefill: Prefill


class Engine:
    """Generates with one decoder; see `generate` and `prefill_prompt`."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        capacity: int,
        prefix_cache=None,
        weights_version: str = "base",
        graphs: bool | None = None,
        kernels: bool = True,
    ):
        """`capacity`: the most tokens of a prompt and its completion. `prefix_cache`: a RadixCache.

        `graphs`: record decoding, and prefills of shapes that come back, as CUDA graphs (by default
        on CUDA). `kernels`: use Triton's on CUDA where they cover the case, plain operators
        elsewhere. The decoder's weights are packed in place, see `DecodeStep`; changing them later
        needs `set_weights_version`.
        """
        self.decoder = decoder
        self.capacity = capacity
        self.prefix_cache = prefix_cache
        self.graphs = graphs
        self.kernels = kernels
        self._version = weights_version
        self._slots: dict[int, _Slot] = {}

    @property
    def weights_version(self) -> str:
        return self._version

    def set_weights_version(self, version: str) -> None:
        """Says that the weights have changed: nothing computed before is reused."""
        if self.prefix_cache is not None and version != self._version:
            self.prefix_cache.invalidate(self._version)
        self._version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: SamplingParams,
        num_candidates: int = 1,
        clock: PhaseClock | None = None,
    ) -> list[list[Completion]]:
        """`num_candidates` completions of each prompt, in the order of the prompts.

        The clock gets the phases prefill, decode (steps), sampling and transfer (tokens to the
        host), and, with a prefix cache, lookup and store. What candidate c of prompt p samples
        depends on (seed, p, c) and its logits alone. Raises `BadPrompt` before anything runs.
        """
        if num_candidates < 1:
            raise BadPrompt(f"num_candidates is {num_candidates}.\nAsk for 1 or more.")
        for prompt in prompts:
            self._check(prompt, sampling.max_tokens)
        phase = clock.phase if clock is not None else _untimed
        done: list[list[Completion]] = [[] for _ in prompts]
        lengths = sorted({len(prompt) for prompt in prompts})
        for length in lengths:
            group = [p for p, prompt in enumerate(prompts) if len(prompt) == length]
            found = self._generate_group(
                group, [prompts[p] for p in group], sampling, num_candidates, phase
            )
            for p, completions in zip(group, found, strict=True):
                done[p] = completions
        return done

    def prefill_prompt(
        self, prompt: Sequence[int], *, clock: PhaseClock | None = None
    ) -> Prefilled:
        """Runs one prompt into a cache (phases lookup, prefill, store); at least its last token.

        The cache is the engine's own and overwritten by the next call.
        """
        self._check(prompt, 0)
        with torch.inference_mode():
            slot = self._slot(1)
            slot.cache.reset()
            phase = clock.phase if clock is not None else _untimed
            logits, [cached] = self._prefill(slot.prefill, [prompt], slot.cache, phase)
        return Prefilled(logits, cached, slot.cache)

    @torch.inference_mode()
    def _generate_group(
        self,
        numbers: list[int],
        prompts: list[Sequence[int]],
        sampling: SamplingParams,
        candidates: int,
        phase,
    ) -> list[list[Completion]]:
        """Completions of prompts of one length. Row c · P + p is candidate c of prompt p."""
        rows, length = len(prompts) * candidates, len(prompts[0])
        slot = self._slot(rows)
        slot.cache.reset()
        logits, cached = self._prefill(
            slot.prefill, prompts, slot.cache.rows(0, len(prompts)), phase
        )
        names = [(number, c) for c in range(candidates) for number in numbers]
        if slot.step.loop is not None:
            slot.cache.share(len(prompts), length)
            tokens, logprobs = self._decode_on_device(
                slot, logits.repeat(candidates, 1), sampling, names, len(prompts), phase
            )
        else:
            with phase("prefill"):
                slot.cache.spread(len(prompts), length)
                logits = logits.repeat(candidates, 1)
            tokens, logprobs = self._decode(slot, logits, sampling, names, phase)
        return [
            [
                self._completion(
                    tokens[c * len(prompts) + p],
                    logprobs[c * len(prompts) + p],
                    sampling,
                    length,
                    cached[p],
                )
                for c in range(candidates)
            ]
            for p in range(len(prompts))
        ]

    def _prefill(
        self, prefill: Prefill, prompts: list[Sequence[int]], cache: ContiguousCache, phase
    ) -> tuple[Tensor, list[int]]:
        """Fills the empty `cache` (one row a prompt); logits (P, V) and tokens reused of each."""
        if self.prefix_cache is None:
            with phase("prefill"):
                tokens = torch.from_numpy(np.asarray(prompts, dtype=np.int64))
                return prefill(tokens, cache), [0] * len(prompts)
        # A single prompt fills the cache itself: the lengths of a view of rows are its own.
        rows = [cache.rows(row, row + 1) for row in range(len(prompts))]
        rows = rows if len(prompts) > 1 else [cache]
        found = [
            self._prefill_suffix(prefill, prompt, row, phase)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        return torch.cat([logits for logits, _ in found]), [cached for _, cached in found]

    def _prefill_suffix(
        self, prefill: Prefill, prompt: Sequence[int], cache: ContiguousCache, phase
    ) -> tuple[Tensor, int]:
        """Copies the longest stored prefix and runs the rest; then stores what was run."""
        with phase("lookup"):
            ids = np.asarray(prompt, dtype=np.int64)
            with self.prefix_cache.match(self._version, ids[:-1]) as match:
                cached = match.copy_into(cache)
        with phase("prefill"):
            logits = prefill(torch.from_numpy(ids[None, cached:]), cache)
        with phase("store"):
            self.prefix_cache.insert(
                self._version, ids, lambda start, stop: cache.segment(0, start, stop)
            )
        return logits, cached

    def _decode(
        self, slot: _Slot, logits: Tensor, sampling: SamplingParams, names: list, phase
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Samples up to max_tokens a row; rows may run past their stop token.

        `names`: (prompt, candidate) of each row, for its random numbers.
        """
        device = logits.device
        generators = [] if sampling.greedy else make_generators(sampling, names, device)
        interval = STOP_CHECK[device.type] if sampling.stop_token_ids else sampling.max_tokens
        running = set(range(len(names)))
        tokens: list[list[int]] = [[] for _ in names]
        logprobs: list[list[float]] = [[] for _ in names]
        pending: list[tuple[Tensor, Tensor]] = []
        with restored_threads():
            if torch.get_num_threads() != slot.step.threads:
                torch.set_num_threads(slot.step.threads)
            for count in range(1, sampling.max_tokens + 1):
                with phase("sampling"):
                    sampled = sample(logits, sampling, generators)
                    pending.append(sampled)
                if count % interval == 0 or count == sampling.max_tokens:
                    with phase("transfer"):
                        _to_host(pending, tokens, logprobs)
                    running -= {
                        row
                        for row in running
                        if not set(sampling.stop_token_ids).isdisjoint(tokens[row][-interval:])
                    }
                    if not running or count == sampling.max_tokens:
                        break
                with phase("decode"):
                    logits = slot.step(sampled[0])
        return tokens, logprobs

    def _decode_on_device(
        self,
        slot: _Slot,
        logits: Tensor,
        sampling: SamplingParams,
        names: list,
        prompts: int,
        phase,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """As `_decode`, without waiting for a token: rows are `names`, row r of prompt r % prompts.

        What was sampled is copied while the device goes on; a stop is seen one interval late.
        """
        loop, length = slot.step.loop, slot.cache.length(0)
        with phase("sampling"):
            loop.begin(logits, sampling, names, prompts, length)
        interval = STOP_CHECK["cuda"] if sampling.stop_token_ids else sampling.max_tokens
        transfers: deque[Transfer] = deque()
        tokens: list[list[int]] = [[] for _ in names]
        logprobs: list[list[float]] = [[] for _ in names]
        running = set(range(len(names)))
        for count in range(1, sampling.max_tokens + 1):
            with phase("sampling"):
                loop.sample()
            if count % interval == 0 or count == sampling.max_tokens:
                first = (count - 1) // interval * interval
                with phase("transfer"):
                    transfers.append(Transfer(*loop.sampled(first, count)))
                    if len(transfers) > 1:
                        transfers.popleft().into(tokens, logprobs)
                running -= {
                    row
                    for row in running
                    if not set(sampling.stop_token_ids).isdisjoint(tokens[row][-interval:])
                }
                if not running or count == sampling.max_tokens:
                    break
            with phase("decode"):
                slot.cache.advance(1)
                loop.advance()
        with phase("transfer"):
            while transfers:
                transfers.popleft().into(tokens, logprobs)
        return tokens, logprobs

    def _completion(
        self,
        tokens: list[int],
        logprobs: list[float],
        sampling: SamplingParams,
        prompt_tokens: int,
        cached_tokens: int,
    ) -> Completion:
        """Cuts a row behind its first stop token."""
        stops = (at for at, token in enumerate(tokens) if token in sampling.stop_token_ids)
        at = next(stops, None)
        end = len(tokens) if at is None else at + 1
        return Completion(
            tokens=tuple(tokens[:end]),
            logprobs=tuple(logprobs[:end]),
            finish_reason="length" if at is None else "stop",
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            versions=(self._version,) * end,
        )

    def _slot(self, rows: int) -> _Slot:
        """Cache and step for a batch; made once, and anew when the weights have moved."""
        slot = self._slots.pop(rows, None)
        if slot is None or not slot.step.is_current():
            if slot is not None:
                self._slots.clear()  # the other steps read the old weights too
            while len(self._slots) >= KEPT_SLOTS:
                self._slots.pop(next(iter(self._slots)))
            cache = self._new_cache(rows)
            step = DecodeStep(self.decoder, cache, graph=self.graphs, kernels=self.kernels)
            packed = None if step.loop is None else step.weights
            prefill = Prefill(self.decoder, graphs=self.graphs is not False, weights=packed)
            slot = _Slot(cache, step, prefill)
        self._slots[rows] = slot  # the most recently used is last
        return slot

    def _new_cache(self, rows: int) -> ContiguousCache:
        arch, weight = self.decoder.arch, self.decoder.embed_tokens.weight
        # Rounded up so that the graph's attention reads whole parts.
        capacity = -(-self.capacity // SPLIT) * SPLIT if weight.is_cuda else self.capacity
        needed = rows * capacity * arch.kv_bytes_per_token(weight.element_size())
        require(needed, str(weight.device), f"a KV cache of {rows} x {capacity} tokens")
        return ContiguousCache(arch, rows, capacity, weight.device, weight.dtype)

    def _check(self, prompt: Sequence[int], new_tokens: int) -> None:
        if not len(prompt):
            raise BadPrompt("a prompt is empty.\nGive every prompt at least one token.")
        if len(prompt) + new_tokens > self.capacity:
            raise BadPrompt(
                f"{len(prompt)} prompt tokens and {new_tokens} new ones exceed the engine's "
                f"capacity of {self.capacity}.\nShorten them or make the engine with more."
            )
        vocabulary = self.decoder.arch.vocab_size
        if not (min(prompt) >= 0 and max(prompt) < vocabulary):
            raise BadPrompt(
                f"a prompt has token ids outside of 0 … {vocabulary - 1}.\n"
                "Use the model's own tokenizer."
            )


class Transfer:
    """What was sampled, (steps, B), on its way to the host while the device goes on."""

    def __init__(self, tokens: Tensor, logprobs: Tensor):
        self._done = None
        if not tokens.is_cuda:
            self._tokens, self._logprobs = tokens.clone(), logprobs.clone()
            return
        self._tokens, self._logprobs = (
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            for x in (tokens, logprobs)
        )
        self._done = torch.cuda.Event()
        self._done.record()

    def into(self, tokens: list[list[int]], logprobs: list[list[float]]) -> None:
        """Waits for the copy and appends it to the rows' lists."""
        if self._done is not None:
            self._done.synchronize()
        for row, (new_tokens, new_logprobs) in enumerate(
            zip(self._tokens.t().tolist(), self._logprobs.t().tolist(), strict=True)
        ):
            tokens[row] += new_tokens
            logprobs[row] += new_logprobs


def _to_host(
    pending: list[tuple[Tensor, Tensor]], tokens: list[list[int]], logprobs: list[list[float]]
) -> None:
    """Moves what was sampled to the rows' lists, in one copy, and empties `pending`."""
    for row, (new_tokens, new_logprobs) in enumerate(
        zip(
            torch.stack([t for t, _ in pending], 1).tolist(),
            torch.stack([p for _, p in pending], 1).tolist(),
            strict=True,
        )
    ):
        tokens[row] += new_tokens
        logprobs[row] += new_logprobs
    pending.clear()


def _untimed(name: str):
    """Stands in for a clock's `phase` where there is none."""
    return contextlib.nullcontext()
