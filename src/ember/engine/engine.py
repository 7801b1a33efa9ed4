"""The engine: prompts in, completions out, with every phase timed apart.

Contract. The engine knows token ids, not text; a `detokenize` function makes text of them. A prompt
is prefilled once however many candidates it has, by the decoder itself; rows of the batch are
refilled as others end (`ember.engine.scheduler`). With a prefix cache (`RadixCache`) the longest
stored prefix of a prompt is copied instead of computed, and what was computed is stored; keys are
never shared across weights versions.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.backends.compiled.backend import NativeRows
from ember.backends.forward import Prefill
from ember.backends.packing import PackedDecoder, why_unpacked
from ember.backends.rows import HostBatch, Lockstep
from ember.backends.sampling import BadSampling, SamplingParams
from ember.backends.select import why_not
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import Size, SlottedCache, size_for
from ember.engine import native_step
from ember.engine.host_rows import HostRows
from ember.engine.scheduler import Batch, Completion, Prompt, Rollout, RolloutStats
from ember.engine.step import SPLIT, DecodeStep
from ember.engine.stops import Detokenize
from ember.measure.clock import PhaseClock
from ember.measure.memory import available_bytes, require
from ember.model.decoder import Decoder
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

KEPT_SLOTS = 3  # batch sizes whose caches and graphs stay in memory
MAX_ROWS = {"cpu": 32, "cuda": 128}  # candidates that decode together, unless told otherwise
COPIES_PAY = 4096  # prompt tokens; above, the CPU reads a prompt once for all its candidates
MEMORY_SHARE = 0.8  # of the free memory, for the KV of a rollout


class BadPrompt(EmberError):
    """A prompt that the engine cannot run; the message says why."""


class EngineBusy(EmberError):
    """A call while another one has not ended."""


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
        detokenize: Detokenize | None = None,
        max_rows: int | None = None,
        cache_bytes: int | None = None,
        batch_invariant: bool = False,
    ):
        """`capacity`: the most tokens of a prompt and its completion. `prefix_cache`: a RadixCache.
        `detokenize`: text of token ids, for stop strings and the completions' text.

        `max_rows`: the most candidates that decode together; `cache_bytes`: the most memory for
        their KV (by default a share of what is free). `batch_invariant`: on the CPU without
        compiled code, which is so anyway, make a candidate the same to the last bit whatever runs
        beside it, at some cost in time.

        `graphs`: record decoding, and prefills of shapes that come back, as CUDA graphs (by default
        on CUDA). `kernels`: use Triton's on CUDA, compiled code on the CPU, where they cover
        the case, plain operators elsewhere. The decoder's weights are packed in place, see
        `DecodeStep`; changing them later needs `set_weights_version`.
        """
        self.decoder = decoder
        self.capacity = capacity
        self.prefix_cache = prefix_cache
        self.graphs = graphs
        self.kernels = kernels
        self.detokenize, self.max_rows = detokenize, max_rows
        self.cache_bytes, self.batch_invariant = cache_bytes, batch_invariant
        self.last_stats: RolloutStats | None = None
        self._version = weights_version
        self._slots: dict[int, _Slot] = {}
        self._rows = None  # the last HostBatch or DeviceBatch
        self._running = False

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
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        num_candidates: int | None = None,
        *,
        clock: PhaseClock | None = None,
    ) -> list[list[Completion]]:
        """Candidates of each prompt, in the order of the prompts.

        `sampling_params`: for all prompts, or one for each; `num_candidates` overrides their `n`.
        What a candidate samples depends on its prompt, its parameters and its number alone. The
        clock gets the phases prefill, decode (steps), sampling and transfer (tokens to the host),
        and, with a prefix cache, lookup and store. `last_stats` tells what was done. Raises
        `BadPrompt` and `BadSampling` before anything runs, `NotFinite` for broken weights.
        """
        if not prompts:
            return []
        return self.stream(prompts, sampling_params, num_candidates, clock=clock).run()

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        num_candidates: int | None = None,
        *,
        clock: PhaseClock | None = None,
    ) -> Rollout:
        """As `generate`, to be iterated for chunks of tokens as they come; it can be cancelled.

        Nothing runs before the first chunk is asked for, and nothing else meanwhile.
        """
        requests = self._requests(prompts, sampling_params, num_candidates)
        if not requests:
            raise BadPrompt("there are no prompts.\nGive at least one.")
        rollout = Rollout(
            self._batch(requests),
            requests,
            phase=clock.phase if clock is not None else _untimed,
            guard=self._alone,
            version=lambda: self._version,
            failed=self._forget,
            decode=self.detokenize,
        )
        self.last_stats = rollout.stats
        return rollout

    def prefill_prompt(
        self, prompt: Sequence[int], *, clock: PhaseClock | None = None
    ) -> Prefilled:
        """Runs one prompt into a cache (phases lookup, prefill, store); at least its last token.

        The cache is the engine's own and overwritten by the next call.
        """
        self._check(prompt, 0)
        with self._alone(), torch.inference_mode():
            slot = self._slot(1)
            slot.cache.reset()
            phase = clock.phase if clock is not None else _untimed
            logits, [cached] = self._prefill(slot.prefill, [prompt], slot.cache, phase)
        return Prefilled(logits, cached, slot.cache)

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

    def _requests(self, prompts, sampling_params, num_candidates) -> list[Prompt]:
        """Checked prompts with their parameters."""
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        if len(sampling_params) != len(prompts):
            raise BadPrompt(
                f"{len(sampling_params)} sampling parameters for {len(prompts)} prompts.\n"
                "Give one for all prompts, or one for each."
            )
        if num_candidates is not None and num_candidates < 1:
            raise BadPrompt(f"num_candidates is {num_candidates}.\nAsk for 1 or more.")
        found = []
        for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            self._check(prompt, params.max_tokens)
            if params.stop and self.detokenize is None:
                raise BadSampling(
                    "stop strings need the text of tokens, which the engine does not know.\n"
                    "Make the engine with detokenize=, or use stop_token_ids."
                )
            found.append(Prompt(number, prompt, params, num_candidates or params.n))
        return found

    def _batch(self, requests: list[Prompt]) -> Batch:
        """What the requests run on."""
        weight, total = self.decoder.embed_tokens.weight, sum(p.candidates for p in requests)
        rows = min(total, self.max_rows or MAX_ROWS[weight.device.type])
        arch, here = self.decoder.arch, weight.device.type == "cpu"
        if self.kernels and why_not(arch, weight, rows) is None:
            return self._kept(self._device_batch, requests, rows)
        if self.kernels and native_step.why_not(arch, weight) is None:
            return self._kept(self._native_batch, requests, rows)
        on_host = here and weight.dtype == torch.float32 and why_unpacked(arch) is None
        # One prompt's few candidates are fastest in step, each on a copy of a short prompt.
        copied = sum(len(p.tokens) * (p.candidates - 1) for p in requests)
        in_step = len(requests) == 1 and total == rows and copied <= COPIES_PAY
        if on_host and (not in_step or self.batch_invariant):
            return self._kept(self._host_batch, requests, rows)
        return Lockstep(self._lockstep, self._prefill, requests[0].candidates, weight.device)

    def _lockstep(self, rows: int) -> tuple[ContiguousCache, DecodeStep, Prefill]:
        slot = self._slot(rows)
        return slot.cache, slot.step, slot.prefill

    def _kept(self, make, requests: list[Prompt], rows: int) -> Batch:
        """The last batch if it is large enough, with its memory and graphs, or a new one."""
        size = self._size(requests, rows)
        if self._rows is None or not self._rows.serves(size):
            self._rows = None  # its memory goes before the new one comes
            with torch.inference_mode():
                self._rows = make(self._slotted(size))
        self._rows.slots = size.rows
        return self._rows

    def _host_batch(self, cache: SlottedCache) -> Batch:
        step = HostRows(
            *(self.decoder.arch, PackedDecoder(self.decoder), cache, self.capacity),
            invariant=self.batch_invariant,
        )
        return HostBatch(step, cache, Prefill(self.decoder, graphs=False), self._prefill)

    def _native_batch(self, cache: SlottedCache) -> Batch:
        weights = PackedDecoder(self.decoder)
        step = NativeRows(self.decoder.arch, weights, cache, self.capacity)
        return HostBatch(step, cache, Prefill(self.decoder, graphs=False), self._prefill)

    def _device_batch(self, cache: SlottedCache) -> Batch:
        from ember.backends.cuda.backend import DeviceBatch  # imports Triton
        from ember.backends.cuda.step import KernelStep

        slot = self._slot(1)
        positions = max(self.capacity, slot.cache.capacity)
        step = KernelStep(
            self.decoder.arch, slot.step.weights, cache.rows, positions, cache.prompts
        )
        if cache.rows.is_cuda and self.graphs is not False:
            step.capture()
        return DeviceBatch(step, cache, slot.cache, slot.prefill, self._prefill)

    @property
    def device_step(self):
        """The kernels' step that the last rollout ran on, if it did."""
        return getattr(self._rows, "step", None)

    @property
    def decode_threads(self) -> int | None:
        """The CPU threads that steps of the last batch ran on; None on a GPU."""
        return getattr(self._rows, "threads", None)

    def _size(self, requests: list[Prompt], rows: int) -> Size:
        """Memory that the requests could use, within the budget."""
        weight, arch = self.decoder.embed_tokens.weight, self.decoder.arch
        token = arch.kv_bytes_per_token(weight.element_size())
        budget = self.cache_bytes
        if budget is None:
            held = 0 if self._rows is None else self._rows.kv_bytes()[1]
            budget = int(MEMORY_SHARE * available_bytes(str(weight.device))) + held
        return size_for(
            [len(prompt.tokens) for prompt in requests],
            [prompt.candidates for prompt in requests],
            max(prompt.params.max_tokens for prompt in requests),
            rows=rows,
            budget_tokens=budget // token,
            token_bytes=token,
        )

    def _slotted(self, size: Size) -> SlottedCache:
        weight = self.decoder.embed_tokens.weight
        return SlottedCache(
            self.decoder.arch,
            prompt_tokens=size.prompt_tokens,
            rows=size.rows,
            row_tokens=size.row_tokens,
            device=weight.device,
            dtype=weight.dtype,
        )

    @contextlib.contextmanager
    def _alone(self):
        """One call at a time: all share the engine's memory."""
        if self._running:
            raise EngineBusy(
                "the engine is in the middle of another call.\nExhaust or close its stream first."
            )
        self._running = True
        try:
            yield
        finally:
            self._running = False

    def _forget(self) -> None:
        """Drops KV that broken weights may have left in the prefix cache."""
        if self.prefix_cache is not None:
            self.prefix_cache.invalidate(self._version)

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
        positions = self.decoder.arch.max_positions
        if len(prompt) + new_tokens > positions:
            raise BadPrompt(
                f"{len(prompt)} prompt tokens and {new_tokens} new ones exceed the model's context "
                f"of {positions} tokens.\nShorten them or use a model with a longer context."
            )


def _untimed(name: str):
    """Stands in for a clock's `phase` where there is none."""
    return contextlib.nullcontext()
