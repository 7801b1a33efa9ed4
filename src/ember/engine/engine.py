"""The engine: prompts in, completions out, with every phase timed apart.

Contract. The engine knows token ids, not text; a `detokenize` function makes text of them. A prompt
is prefilled once however many candidates it has, by a strategy (`engine.prefill`); rows of the
batch are refilled as others end (`engine.scheduler`), on the fastest backend that serves
(`backends.select`). KV is never shared across weights versions.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.backends.base import Backend
from ember.backends.forward import Forward
from ember.backends.packing import PackedDecoder, addresses
from ember.backends.sampling import SamplingParams
from ember.backends.select import Case, Selection, make_backend, select
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import Size, SlottedCache, size_for
from ember.engine.prefill import PlainPrefill, untimed
from ember.engine.requests import BadPrompt, Completion, Prompt, check_prompt, make_prompts
from ember.engine.scheduler import Scheduler
from ember.engine.stats import RolloutStats
from ember.engine.stops import Detokenize
from ember.measure.clock import PhaseClock
from ember.measure.memory import available_bytes, require
from ember.model.decoder import Decoder
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

MAX_ROWS = {"cpu": 32, "cuda": 128}  # candidates that decode together, unless told otherwise
PREFILLS = ("dequantise", "fp8")
MEMORY_SHARE = 0.8  # of the free memory, for the KV of a rollout


class EngineBusy(EmberError):
    """A call while another one has not ended."""


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has been run: logits (1, V) of its last token, tokens reused, and its KV."""

    logits: Tensor
    cached_tokens: int
    cache: ContiguousCache


class Engine:
    """Generates with one decoder; see `generate` and `prefill_prompt`."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        capacity: int,
        prefill: PlainPrefill | None = None,
        weights_version: str = "base",
        graphs: bool = True,
        backend: str | None = None,
        detokenize: Detokenize | None = None,
        max_rows: int | None = None,
        cache_bytes: int | None = None,
        batch_invariant: bool = False,
        require_native: bool = False,
        prefill_by: str = "dequantise",
    ):
        """`capacity`: the most tokens of a prompt and its completion. `prefill`: how prompts' KV
        comes about, by default `PlainPrefill()`. `detokenize`: text of token ids, for stop strings
        and the completions' text.

        `max_rows`: the most candidates that decode together; `cache_bytes`: the most memory for
        their KV (by default a share of what is free). `batch_invariant`: in float32 a candidate is
        the same to the last bit under other batch compositions, at some cost in time.

        `graphs`: on CUDA record decoding, and prefills of shapes that come back, as graphs.
        `backend`: its name, by default the fastest that serves. The fast ones pack the decoder's
        weights in place; changing them later needs `set_weights_version`. `require_native`: packed
        weights are decoded with as they are stored, or nothing runs (see `backends.select`).
        `prefill_by`: how NVFP4 weights are multiplied in prefills on CUDA: "dequantise" to dense
        ones, or "fp8", which rounds them and their input to E4M3.
        """
        self.decoder, self.capacity = decoder, capacity
        self.graphs, self.detokenize = graphs, detokenize
        self.max_rows, self.cache_bytes = max_rows, cache_bytes
        self.batch_invariant = batch_invariant
        self.last_stats: RolloutStats | None = None
        if prefill_by not in PREFILLS:
            raise EmberError(
                f"there is no prefill by {prefill_by!r}.\nChoose from {', '.join(PREFILLS)}."
            )
        self.require_native, self.prefill_by = require_native, prefill_by
        self._only, self._version, self._lock = backend, weights_version, _Lock()
        self.prefill = PlainPrefill() if prefill is None else prefill
        self._addresses: tuple[int | str, ...] = ()  # of the parameters, when what follows was made
        self.backend: Backend | None = None  # what the last rollout ran on
        self._forward: Forward | None = None
        self._staging: ContiguousCache | None = None

    @property
    def weights_version(self) -> str:
        return self._version

    def set_weights_version(self, version: str) -> None:
        """Says that the weights have changed: nothing computed before is reused."""
        self._version = version
        self.prefill.use_version(version)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        num_candidates: int | None = None,
        *,
        clock: PhaseClock | None = None,
    ) -> list[list[Completion]]:
        """Candidates of each prompt, in the order of the prompts.

        Prompts are token ids: lists, arrays, or whatever can be iterated. `sampling_params`: for
        all prompts, or one for each; `num_candidates` overrides their `n`. A completion ends at the
        model's end-of-text tokens, unless `ignore_eos`.
        What a candidate samples depends on its prompt, its parameters and its number alone. The
        clock gets the phases prefill, decode (steps), sampling and transfer (tokens to the host),
        and, with a prefix cache, lookup and store. `last_stats` tells what was done. Raises
        `BadPrompt` and `BadSampling` before anything runs, `NotFinite` for broken weights.
        """
        scheduler = self._schedule(prompts, sampling_params, num_candidates, clock)
        return [] if scheduler is None else scheduler.run()

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        num_candidates: int | None = None,
        *,
        clock: PhaseClock | None = None,
    ) -> Scheduler:
        """As `generate`, to be iterated for chunks of tokens as they come; it can be cancelled.

        Nothing runs before the first chunk is asked for, and nothing else meanwhile.
        """
        scheduler = self._schedule(prompts, sampling_params, num_candidates, clock)
        if scheduler is None:
            raise BadPrompt("there are no prompts.\nGive at least one.")
        return scheduler

    def _schedule(
        self, prompts, sampling_params, num_candidates, clock: PhaseClock | None
    ) -> Scheduler | None:
        """The call, checked and with a backend to run on; None without prompts."""
        requests = make_prompts(
            prompts,
            sampling_params,
            num_candidates,
            decoder=self.decoder,
            capacity=self.capacity,
            has_text=self.detokenize is not None,
        )
        if not requests:
            return None
        backend, rows = self._prepare(requests)
        scheduler = Scheduler(
            backend,
            self.prefill,
            requests,
            rows=rows,
            lock=self._lock,
            clock=clock,
            detokenize=self.detokenize,
        )
        self.last_stats = scheduler.stats
        return scheduler

    @torch.inference_mode()
    def prefill_prompt(
        self, prompt: Sequence[int], *, clock: PhaseClock | None = None
    ) -> Prefilled:
        """Runs one prompt into a cache (phases lookup, prefill, store); at least its last token.

        The cache is the engine's own and overwritten by the next call.
        """
        prompt = check_prompt(prompt, 0, self.decoder.arch, self.capacity)
        with self._lock:
            self._take_stock()
            forward = self._prompts(self.select(1).name)
            cache = self._staging
            cache.reset()
            phase = untimed if clock is None else clock.phase
            logits, cached = self.prefill.fill(prompt, cache, forward, phase)
            if logits is None:
                with phase("prefill"):
                    logits = forward(torch.tensor([prompt[-1:]]), cache)
        return Prefilled(logits, cached, cache)

    def select(self, rows: int) -> Selection:
        """Which backend runs so many rows, and why no faster one does."""
        case = Case.of(self.decoder, rows=rows, batch_invariant=self.batch_invariant)
        return select(case, self._only, require_native=self.require_native)

    def _prepare(self, requests: Sequence[Prompt]) -> tuple[Backend, int]:
        """What the requests run on, and in how many rows: the last backend if its memory is large
        enough, or a new one."""
        self._take_stock()
        device = self.decoder.embed_tokens.weight.device
        total = sum(prompt.candidates for prompt in requests)
        rows = min(total, self.max_rows or MAX_ROWS[device.type])
        found = self.select(rows)
        size = self._size(requests, rows, shared=found.name != "eager")
        kept = self.backend
        if kept is None or kept.name != found.name or not kept.cache.holds(size):
            log.info("decoding by the backend %s (%s)", found.name, found.reasons or "the fastest")
            if found.dequantised:
                formats = ", ".join(found.dequantised)
                log.warning("%s weights become dense before each product: no kernel runs", formats)
            kept = self.backend = None  # its memory goes before the new one comes
            self.backend = self._new_backend(found.name, size)
        return self.backend, size.rows

    def _new_backend(self, name: str, size: Size) -> Backend:
        weight = self.decoder.embed_tokens.weight
        forward = Forward(self.decoder)
        if weight.is_cuda or name == "kernels":
            forward = self._prompts(name)
        with torch.inference_mode():
            cache = SlottedCache(
                self.decoder.arch,
                prompt_tokens=size.prompt_tokens,
                rows=size.rows,
                row_tokens=size.row_tokens,
                device=weight.device,
                dtype=weight.dtype,
            )
        backend = make_backend(
            name,
            self.decoder,
            cache,
            capacity=self.capacity,
            forward=forward,
            graphs=self.graphs,
            batch_invariant=self.batch_invariant,
        )
        self._addresses = addresses(self.decoder)
        return backend

    @torch.inference_mode()
    def _prompts(self, name: str) -> Forward:
        """How a backend runs prompts, and memory for one, made when first needed."""
        packed = name == "kernels"
        if self._staging is None:
            arch, weight = self.decoder.arch, self.decoder.embed_tokens.weight
            needed = self.capacity * arch.kv_bytes_per_token(weight.element_size())
            require(needed, str(weight.device), f"a KV cache of {self.capacity} tokens")
            self._staging = ContiguousCache(arch, 1, self.capacity, weight.device, weight.dtype)
        if self._forward is None or (self._forward.weights is not None) != packed:
            weights = None
            if packed:
                weights = PackedDecoder(self.decoder, self.prefill_by, laid=True)
            self._forward = Forward(
                self.decoder, graphs=self.graphs, weights=weights, memory=self._staging
            )
            self._addresses = addresses(self.decoder)
        return self._forward

    def _take_stock(self) -> None:
        """Where parameters have been replaced or moved, what reads them where they lay goes; the
        strategy may be a new one and learns the version."""
        self.prefill.use_version(self._version)
        if self._addresses != addresses(self.decoder):
            self.backend = self._forward = self._staging = None

    def _size(self, requests: Sequence[Prompt], rows: int, *, shared: bool) -> Size:
        """Memory that the requests could use, within the budget. `shared`: rows read their prompt
        in the arena; else each slot has a copy, and the arena one prompt and the next."""
        weight, arch = self.decoder.embed_tokens.weight, self.decoder.arch
        token = arch.kv_bytes_per_token(weight.element_size())
        budget = self.cache_bytes
        if budget is None:
            held = 0 if self.backend is None else self.backend.cache.bytes
            budget = int(MEMORY_SHARE * available_bytes(str(weight.device))) + held
        new = max(prompt.params.max_tokens for prompt in requests)
        whole = max(len(prompt.tokens) + prompt.params.max_tokens for prompt in requests)
        return size_for(
            [len(prompt.tokens) for prompt in requests],
            [prompt.candidates for prompt in requests] if shared else [rows],
            new if shared else whole,
            rows=rows,
            budget_tokens=budget // token,
            token_bytes=token,
        )


class _Lock:
    """One call at a time: all share the engine's memory."""

    def __init__(self):
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise EngineBusy(
                "the engine is in the middle of another call.\nExhaust or close its stream first."
            )
        self._held = True

    def __exit__(self, *_) -> None:
        self._held = False
