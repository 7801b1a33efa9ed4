"""The rows of a rollout on plain operators: many of any length, or candidates in step.

Contract. Both are a `rollout.Batch`. `HostBatch` (CPU, float32) holds rows of any prompts and
lengths; `Lockstep` one prompt at a time with all its candidates, which a `DecodeStep` runs at one
position. A single sequence is fastest there; elsewhere it serves where nothing else does.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.backends.forward import Prefill
from ember.backends.sampling import SamplingParams, sample
from ember.backends.threads import restored_threads
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import Size, SlottedCache
from ember.engine.scheduler import Prompt, Row, compact
from ember.engine.step import DecodeStep

LOOK_EVERY = {"cpu": 1, "cuda": 16}  # steps between looks at what was sampled; each look waits

PrefillInto = Callable[[Prefill, list[Sequence[int]], ContiguousCache, object], tuple]
"""The engine's seam: fills a cache with prompts; logits (P, V), and tokens reused of each."""


class RowSampler:
    """Samples for rows with parameters and generators of their own, on the host's command."""

    def __init__(self, device: torch.device):
        self._device = device
        self._rows: list[tuple[SamplingParams, torch.Generator | None]] = []
        self._kinds: list[tuple[SamplingParams, list[int], list]] = []
        self._taken: list[tuple] = []

    def join(self, rows: Sequence[Row]) -> None:
        for row in rows:
            greedy = row.params.greedy
            generator = None if greedy else torch.Generator(self._device).manual_seed(row.seed)
            self._rows.append((row.params, generator))
        self._group()

    def leave(self, places: Sequence[int]) -> None:
        compact(self._rows, places)
        self._group()

    def clear(self) -> None:
        self._rows.clear()
        self._taken.clear()

    def _group(self) -> None:
        """Rows of equal parameters are sampled together."""
        kinds: dict[SamplingParams, list[int]] = {}
        for place, (params, _) in enumerate(self._rows):
            kinds.setdefault(params, []).append(place)
        self._kinds = [
            (params, places, [] if params.greedy else [self._rows[i][1] for i in places])
            for params, places in kinds.items()
        ]

    def __call__(self, logits: Tensor) -> Tensor:
        """Next tokens (B,) for logits (B, V)."""
        if len(self._kinds) == 1:
            [(params, _, generators)] = self._kinds
            sampled = sample(logits, params, generators)
            tokens, logprobs, raw, alternatives = sampled
            self._taken.append((tokens, logprobs, raw, [alternatives] if alternatives else None))
            return tokens
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        logprobs, raw = torch.empty(2, len(logits), device=logits.device)
        alternatives = []
        for params, places, generators in self._kinds:
            at = torch.tensor(places, device=logits.device)
            found = sample(logits.index_select(0, at), params, generators)
            tokens[at], logprobs[at], raw[at] = found[:3]
            alternatives.append(found.alternatives)
        wanted = any(found is not None for found in alternatives)
        self._taken.append((tokens, logprobs, raw, alternatives if wanted else None))
        return tokens

    def receive(self) -> "HostReceived":
        taken, self._taken = self._taken, []
        return HostReceived(taken, [places for _, places, _ in self._kinds])


@dataclass
class HostReceived:
    """Steps of sampled tokens, each (tokens, logprobs, raw, alternatives by kind of row)."""

    taken: list[tuple]
    places: list[list[int]]

    def lists(self):
        if len(self.taken) == 1:
            tokens, logprobs, raw = (x[:, None].tolist() for x in self.taken[0][:3])
        else:
            tokens, logprobs, raw = (
                torch.stack([step[i] for step in self.taken], 1).tolist() for i in range(3)
            )
        if self.taken[0][3] is None:
            return tokens, logprobs, raw, None
        found: list[list] = [[] for _ in tokens]
        for step in self.taken:
            for places, kind in zip(self.places, step[3], strict=True):
                if kind is not None:
                    ids, values = (x.tolist() for x in kind)
                    for row, place in enumerate(places):
                        found[place].append(tuple(zip(ids[row], values[row], strict=True)))
        return tokens, logprobs, raw, found


class Lockstep:
    """One prompt at a time and its candidates, all at the same position."""

    def __init__(
        self,
        make: Callable[[int], tuple[ContiguousCache, DecodeStep, Prefill]],
        prefill: PrefillInto,
        rows: int,
        device: torch.device,
    ):
        """`make(rows)`: memory and step for so many rows."""
        self.slots, self.interval, self.lag = rows, LOOK_EVERY[device.type], 0
        self._make, self._prefill, self._device = make, prefill, device
        self._prompt: Prompt | None = None
        self._live: list[int] = []  # rows of the step that still count
        self._sampler = RowSampler(device)
        self._cache, self._step, self._run = make(rows)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._threads = torch.get_num_threads()
        with torch.inference_mode(), restored_threads():
            use_threads(self._step.threads)
            yield

    def reserve(self, prompt: Prompt) -> bool:
        if self._prompt is not None:
            return False
        self._prompt = prompt
        if prompt.candidates != self.slots:
            self.slots = prompt.candidates
            self._cache, self._step, self._run = self._make(self.slots)
        return True

    def prefill(self, prompt: Prompt, phase) -> tuple[Tensor, int]:
        self._cache.reset()
        cache = self._cache.rows(0, 1) if self.slots > 1 else self._cache
        use_threads(self._threads)  # long forwards are fastest with every thread
        logits, [cached] = self._prefill(self._run, [prompt.tokens], cache, phase)
        if self.slots > 1:
            with phase("prefill"):
                self._cache.spread(1, len(prompt.tokens))
        use_threads(self._step.threads)
        return logits, cached

    def join(self, prompt: Prompt, rows: Sequence[Row], logits: Tensor) -> None:
        self._live = list(range(len(rows)))
        self._sampler.join(rows)
        self._logits = logits.expand(len(rows), -1)
        self._tokens = torch.zeros(len(rows), dtype=torch.long, device=self._device)

    def sample(self) -> None:
        if len(self._live) == len(self._tokens):
            self._tokens = self._sampler(self._logits)
            return
        at = torch.tensor(self._live, device=self._device)
        self._tokens[at] = self._sampler(self._logits.index_select(0, at))

    def advance(self) -> None:
        self._logits = self._step(self._tokens)

    def receive(self) -> HostReceived:
        return self._sampler.receive()

    def leave(self, rows: Sequence[int]) -> None:
        compact(self._live, rows)
        self._sampler.leave(rows)

    def release(self, prompt: Prompt) -> None:
        self._prompt = None

    def clear(self) -> None:
        self._sampler.clear()
        self._live.clear()
        self._prompt = self._logits = None

    def mark(self):
        return mark(self._device)

    def between(self, begin, end) -> float:
        return milliseconds(begin, end)

    def kv_bytes(self) -> tuple[int, int]:
        return self._cache.bytes if self._prompt is not None else 0, self._cache.bytes


def use_threads(number: int) -> None:
    if torch.get_num_threads() != number:  # setting them costs more than asking
        torch.set_num_threads(number)


def mark(device: torch.device):
    """A point of time in the device's work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(begin, end) -> float:
    """Between two marks: seconds of the host, or events of the device, for which it waits."""
    if isinstance(begin, float):
        return (end - begin) * 1e3
    end.synchronize()
    return begin.elapsed_time(end)


class SlottedBatch:
    """Prompts and their places in a `SlottedCache`: what batches of any prompts share."""

    def __init__(self, step, cache: SlottedCache, run: Prefill, prefill: PrefillInto):
        self._step, self.slots = step, cache.slots
        self._cache, self._run, self._prefill = cache, run, prefill
        self._prompts: list[Prompt] = []

    def serves(self, size: Size) -> bool:
        """Whether the memory is there and the weights still lie where the step reads them."""
        return self._cache.holds(size) and self._step.is_current()

    def reserve(self, prompt: Prompt) -> bool:
        prompt.place = self._cache.reserve(len(prompt.tokens))
        if prompt.place is None:
            return False
        self._prompts.append(prompt)
        return True

    def release(self, prompt: Prompt) -> None:
        self._cache.free(prompt.place)
        self._prompts.remove(prompt)

    def between(self, begin, end) -> float:
        return milliseconds(begin, end)


class HostBatch(SlottedBatch):
    """Rows of any prompts and lengths over a `SlottedCache`, on the CPU."""

    interval, lag = LOOK_EVERY["cpu"], 0

    def __init__(self, step, cache: SlottedCache, run: Prefill, prefill: PrefillInto):
        """`step`: a `NativeRows` or a `HostRows` over the cache."""
        super().__init__(step, cache, run, prefill)
        self._sampler = RowSampler(torch.device("cpu"))
        self._rows: list[Prompt] = []

    @property
    def threads(self) -> int:
        """Threads of a decoding step."""
        return self._step.threads

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._threads = torch.get_num_threads()
        with torch.inference_mode(), restored_threads():
            use_threads(self._step.threads)
            yield

    def prefill(self, prompt: Prompt, phase) -> tuple[Tensor, int]:
        use_threads(self._threads)
        view = self._cache.view(prompt.place)
        logits, [cached] = self._prefill(self._run, [prompt.tokens], view, phase)
        use_threads(self._step.threads)
        return logits, cached

    def join(self, prompt: Prompt, rows: Sequence[Row], logits: Tensor) -> None:
        self._sampler.join(rows)
        self._rows += [prompt] * len(rows)
        self._step.join(prompt.place, len(rows), logits)

    def sample(self) -> None:
        self._step.tokens.copy_(self._sampler(self._step.logits))

    def advance(self) -> None:
        self._step.advance()

    def receive(self) -> HostReceived:
        return self._sampler.receive()

    def leave(self, rows: Sequence[int]) -> None:
        self._step.leave(compact(self._rows, rows), len(self._rows))
        self._sampler.leave(rows)

    def clear(self) -> None:
        for prompt in list(self._prompts):
            self.release(prompt)
        self._rows.clear()
        self._sampler.clear()
        self._step.leave([], 0)

    def mark(self) -> float:
        return time.perf_counter()

    def kv_bytes(self) -> tuple[int, int]:
        return self._cache.bytes_used(len(self._rows)), self._cache.bytes
