"""Continuous batching: prompts and their candidates through a fixed number of rows.

Contract. A `Scheduler` is one call of `Engine.generate`. Rows decode together on a backend; a
prompt is prefilled once, when a row and memory for it are free, and its candidates share its KV. A
row that ends leaves at once and the next candidate or prompt takes its place. What a candidate
samples depends on its prompt, parameters and number alone. Iterating gives chunks of tokens as
they come; `cancel` ends prompts early.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from ember.backends.base import Backend, Received
from ember.backends.threads import restored_threads, use_threads
from ember.engine.prefill import PlainPrefill
from ember.engine.requests import Chunk, Completion, Prompt, Row
from ember.engine.stats import RolloutStats, StepBatch
from ember.engine.stops import Detokenize, TextStream, final_text
from ember.measure.clock import PhaseClock, between_ms, mark
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

SAY_EVERY = 5.0  # seconds between lines of progress


class NotFinite(EmberError):
    """The model gave non-finite logits."""


class Degenerate(EmberError):
    """A completion that repeats one token."""


def compact(rows: list, leaving: Sequence[int]) -> list[tuple[int, int]]:
    """Closes the holes of a list whose items at `leaving` end, by items from its end.

    Changes the list; returns (from, to) of the items that moved, in order.
    """
    moves = []
    for place in sorted(leaving, reverse=True):
        last = rows.pop()
        if place < len(rows):
            rows[place] = last
            moves.append((len(rows), place))
    return moves


def check_repeats(row: Row, new: int) -> None:
    """Raises Degenerate where one of the new tokens is the last of too many equal ones."""
    most = row.params.max_repeats
    if most is None:
        return
    seen, run = row.tokens[-(new + most - 1) :], 0
    for place, token in enumerate(seen):
        run = run + 1 if place and token == seen[place - 1] else 1
        if run == most:
            raise Degenerate(
                f"candidate {row.candidate} of prompt {row.prompt.number} is token {token} "
                f"{run} times in a row.\nSomething in the model is broken: compare its layers "
                "with a reference (ember.lowbit.debug), scales of packed weights first."
            )


class Scheduler:
    """Iterate for chunks; afterwards (or after `run`) `completions` and `stats` are complete."""

    def __init__(
        self,
        backend: Backend,
        prefill: PlainPrefill,
        prompts: Sequence[Prompt],
        *,
        rows: int,
        lock: AbstractContextManager,
        clock: PhaseClock | None = None,
        detokenize: Detokenize | None = None,
    ):
        """`rows`: the most that decode together; `lock` is held while they do."""
        self._backend, self._prefill, self._most, self._lock = backend, prefill, rows, lock
        self._decode, self._device = detokenize, backend.cache.rows.device
        self._clock = PhaseClock(str(self._device)) if clock is None else clock
        self._phase, self._times_before = self._clock.phase, {}
        self._waiting = deque(prompts)
        self._placed: list[Prompt] = []  # prompts whose KV lies in the arena
        self._rows: list[Row] = []
        self._pending: deque[tuple[Received, list[Row], int, str]] = deque()
        self._cancelled: set[int] = set()
        self._marks: list[tuple[StepBatch, object, object]] = []
        # Of every prompt, in order; None for candidates that have not ended.
        self.completions: list[list[Completion | None]] = [[None] * p.candidates for p in prompts]
        self._settled, self._to_come = 0, sum(p.candidates * p.params.max_tokens for p in prompts)
        self._began = self._said = time.perf_counter()
        self._polls = False  # someone wants tokens as they come
        staging = backend.forward.memory
        self.stats = RolloutStats(
            prompts=len(prompts),
            candidates=sum(p.candidates for p in prompts),
            slots=rows,
            prompt_tokens=sum(len(p.tokens) for p in prompts),
            reserved_kv_bytes=backend.cache.bytes + (0 if staging is None else staging.bytes),
        )

    def run(self) -> list[list[Completion]]:
        """Runs to the end."""
        for _ in self._rounds():
            pass
        return self.completions

    def __iter__(self) -> Iterator[Chunk]:
        self._polls = True
        for changed in self._rounds():
            yield from map(self._chunk, changed)

    def cancel(self, prompt: int | None = None) -> None:
        """Ends a prompt's candidates, or all, at the next poll; they keep what they have."""
        every = range(len(self.completions))
        self._cancelled.update(every if prompt is None else [prompt])

    def _rounds(self) -> Iterator[list[Row]]:
        """Rows that have new tokens or have ended, after every poll."""
        with self._lock:
            self._times_before = self._clock.times_ms()
            self._began = self._said = time.perf_counter()
            try:
                more = True
                while more:
                    with self._working():  # not across a yield: it is the thread's state
                        changed, more = self._round()
                    yield list(changed.values())
            finally:
                self._close()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """With the backend's number of threads; prefills are fastest with every one."""
        self._threads = torch.get_num_threads()
        with torch.inference_mode(), restored_threads():
            use_threads(self._backend.threads or self._threads)
            yield

    def _round(self) -> tuple[dict[int, Row], bool]:
        """Steps up to the next poll; changed rows, and whether anything is left to run."""
        backend, changed = self._backend, self._end_cancelled()
        later = self._admit()
        due = [row for row in self._rows if row.own]
        if due:  # what rows chose last, and the last tokens of prompts whose KV lacks them
            begin = mark(self._device)
            self._advance()
            self._note(begin, due, 1, sum(row.own for row in due))
        for rows, logits in later:
            self._join(rows, logits)
        if not self._rows:
            return changed | self._receive(0), False
        steps, begin = self._steps_ahead(), mark(self._device)
        for step in range(steps):
            if step:
                self._advance()
            with self._phase("sampling"):
                backend.sample()
        # The step that runs a row's own token number i reads i of them.
        read = sum(sum(range(row.own + 1, row.own + steps)) for row in self._rows)
        for row in self._rows:
            row.issued += steps
        self._note(begin, self._rows, steps - 1, read)
        with self._phase("transfer"):
            version = self._prefill.version
            self._pending.append((backend.receive(), list(self._rows), steps, version))
            changed |= self._receive(backend.lag)
        self._say()
        self._leave()
        return changed, True

    def _advance(self) -> None:
        with self._phase("decode"):
            self._backend.advance()

    def _steps_ahead(self) -> int:
        """Until the first row must end, or someone has to poll."""
        steps = min(row.params.max_tokens - row.issued for row in self._rows)
        polls = self._polls or any(row.params.stop or row.prompt.stops for row in self._rows)
        return min(steps, self._backend.interval) if polls else steps

    def _admit(self) -> list[tuple[list[Row], Tensor]]:
        """Fills free rows: first the rest of the prompt that has started, then the next ones.

        Returns those that are to join, with their logits, after the next step: a step runs all rows
        there are, and they have nothing to run in it. (Where rows copy their prompts they join at
        once, which makes room for the next prompt, and the backend leaves them out.)
        """
        backend, stats, later = self._backend, self.stats, []
        free = self._most - len(self._rows)
        while self._waiting and free:
            prompt = self._waiting[0]
            if not prompt.started and not self._begin(prompt):
                break
            first, count = prompt.started, min(free, prompt.candidates - prompt.started)
            rows = [Row(prompt, first + c, self._decode) for c in range(count)]
            if prompt.logits is None or not backend.shares_prompts:
                self._join(rows, prompt.logits)
            else:
                later.append((rows, prompt.logits))
            prompt.started += count
            free -= count
            used = backend.cache.bytes_used(self._most - free)
            stats.peak_kv_bytes = max(stats.peak_kv_bytes, used)
            if prompt.started == prompt.candidates:
                prompt.logits = None
                self._waiting.popleft()
                self._free_unneeded(prompt)
        return later

    def _join(self, rows: list[Row], logits: Tensor | None) -> None:
        self._backend.join([row.to_backend() for row in rows], logits)
        self._rows += rows

    def _begin(self, prompt: Prompt) -> bool:
        """Finds memory for a prompt and prefills it; False: there is no memory yet."""
        backend, cache, stats = self._backend, self._backend.cache, self.stats
        prompt.run = cache.reserve(len(prompt.tokens))
        if prompt.run is None:
            return False
        self._placed.append(prompt)
        use_threads(self._threads)
        prompt.logits, prompt.cached = self._prefill.fill(
            prompt.tokens, cache.view(prompt.run), backend.forward, self._phase
        )
        use_threads(backend.threads or self._threads)
        if prompt.logits is None:
            prompt.run = cache.trim(prompt.run, len(prompt.tokens) - 1)
        stats.prefills += 1
        stats.kept_prompts += prompt.lacks_last
        stats.cached_tokens += prompt.cached
        stats.prefix_hits += prompt.cached > 0
        return True

    def _free_unneeded(self, prompt: Prompt) -> None:
        """Frees a prompt's KV once no row reads it, or has still to copy it."""
        done = prompt.ended if self._backend.shares_prompts else prompt.started
        if done == prompt.candidates and prompt in self._placed:
            self._placed.remove(prompt)
            self._backend.cache.free(prompt.run)

    def _receive(self, lag: int) -> dict[int, Row]:
        """Takes in what has arrived but for the last `lag` polls; rows that have new tokens."""
        changed: dict[int, Row] = {}
        while len(self._pending) > lag:
            received, rows, steps, version = self._pending.popleft()
            tokens, logprobs, raw, alternatives = received.lists()
            for place, row in enumerate(rows):
                if row.finish is not None:
                    self.stats.discarded_tokens += steps
                    continue
                more = None if alternatives is None else alternatives[place]
                self._take(row, tokens[place], logprobs[place], raw[place], more, version)
                changed[id(row)] = row
        return changed

    def _take(self, row: Row, tokens, logprobs, raw, alternatives, version: str) -> None:
        """Appends new tokens up to the first that ends the row."""
        if not all(map(math.isfinite, logprobs)):
            self._prefill.forget()
            raise NotFinite(
                f"the logits of prompt {row.prompt.number} are non-finite (weights version "
                f"{version!r}).\nCheck the weights for NaN and infinity; nothing of them was kept."
            )
        end, stops = len(tokens), row.prompt.stops
        for place, token in enumerate(tokens) if stops or row.params.stop else ():
            found = row.text.add(token) if row.params.stop else None
            if token in stops:
                found = token
            if found is not None:
                row.finish, row.stop_reason, end = "stop", found, place + 1
                break
        self.stats.discarded_tokens += len(tokens) - end
        self.stats.generated_tokens += end
        row.tokens += tokens[:end]
        check_repeats(row, end)
        row.logprobs += logprobs[:end]
        row.raw += raw[:end]
        row.versions += [version] * end
        if row.alternatives is not None:
            most = row.params.logprobs  # others in the batch may have asked for more
            row.alternatives += [found[:most] for found in alternatives[:end]]
        if row.finish is None and len(row.tokens) == row.params.max_tokens:
            row.finish = "length"
        if row.finish is not None:
            self._complete(row)

    def _complete(self, row: Row) -> None:
        prompt, text = row.prompt, None
        if self._decode is not None:
            text = final_text(self._decode, row.tokens, row.params.stop)
        self._settled += row.params.max_tokens
        self.completions[prompt.number][row.candidate] = Completion(
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish_reason=row.finish,
            prompt_tokens=len(prompt.tokens),
            cached_tokens=prompt.cached,
            versions=tuple(row.versions),
            raw_logprobs=tuple(row.raw),
            stop_reason=row.stop_reason,
            text=text,
            alternatives=None if row.alternatives is None else tuple(row.alternatives),
            seed=row.params.seed,
        )

    def _leave(self) -> None:
        """Takes rows out that have ended, or have sampled all that they may."""
        leaving = [
            place
            for place, row in enumerate(self._rows)
            if row.finish is not None or row.issued == row.params.max_tokens
        ]
        if not leaving:
            return
        gone = [self._rows[place] for place in leaving]
        moves = compact(self._rows, leaving)
        self._backend.leave(moves, len(self._rows))
        for row in gone:
            row.prompt.ended += 1
            self._free_unneeded(row.prompt)

    def _end_cancelled(self) -> dict[int, Row]:
        if not self._cancelled:
            return {}
        changed, cancelled = self._receive(0), self._cancelled
        ended = [r for r in self._rows if r.prompt.number in cancelled and r.finish is None]
        for prompt in [p for p in self._waiting if p.number in cancelled]:
            self._waiting.remove(prompt)
            rest = range(prompt.started, prompt.candidates)
            ended += [Row(prompt, candidate, self._decode) for candidate in rest]
            prompt.candidates, prompt.logits = prompt.started, None
            self._free_unneeded(prompt)
        for row in ended:
            row.finish = "cancelled"
            self._complete(row)
            changed[id(row)] = row
        self._cancelled = set()
        self._leave()
        return changed

    def _chunk(self, row: Row) -> Chunk:
        new = slice(row.streamed, None)
        row.streamed = len(row.tokens)
        return Chunk(
            prompt=row.prompt.number,
            candidate=row.candidate,
            tokens=tuple(row.tokens[new]),
            logprobs=tuple(row.logprobs[new]),
            raw_logprobs=tuple(row.raw[new]),
            text=self._new_text(row, row.tokens[new]),
            finish_reason=row.finish,
        )

    def _new_text(self, row: Row, tokens: list[int]) -> str | None:
        if self._decode is None:
            return None
        if not row.params.stop:  # nobody else has followed its text
            row.text = row.text or TextStream(self._decode)
            for token in tokens:
                row.text.add(token)
        return row.text.take(last=row.finish is not None)

    def _note(self, begin, rows: Sequence[Row], steps: int, own_tokens: int) -> None:
        """Counts steps of the rows, which read so many tokens of their own."""
        prompts = {row.prompt for row in rows}
        readers = prompts if self._backend.shares_prompts else (row.prompt for row in rows)
        same = (len(rows), len(prompts), sum(prompt.run.length for prompt in readers))
        found = self.stats.batches
        if not found or (found[-1].rows, found[-1].prompts, found[-1].prompt_tokens) != same:
            found.append(StepBatch(*same))
        found[-1].steps += steps
        found[-1].own_tokens += own_tokens
        self._marks.append((found[-1], begin, mark(self._device)))

    def _close(self) -> None:
        with self._working():
            self._backend.leave([], 0)
        for prompt in self._placed:
            self._backend.cache.free(prompt.run)
        for held in (self._placed, self._pending, self._rows, self._waiting):
            held.clear()
        self.stats.seconds = time.perf_counter() - self._began
        for batch, begin, end in self._marks:
            batch.ms += between_ms([begin, end])[0]
        self._marks.clear()
        self.stats.add_times(self._times_before, self._clock.times_ms())
        if self.stats.seconds > SAY_EVERY:
            stats = self.stats
            log.info(
                f"{stats.candidates} candidates of {stats.prompts} prompts: "
                f"{stats.generated_tokens} tokens in {stats.seconds:.1f} s, "
                f"{stats.tokens_per_s:.0f} tokens/s, {100 * stats.occupancy:.0f} % of "
                f"{stats.slots} rows occupied, {stats.cached_tokens} prompt tokens reused"
            )

    def _say(self) -> None:
        now, stats = time.perf_counter(), self.stats
        if now - self._said < SAY_EVERY:
            return
        self._said = now
        done = sum(None not in row for row in self.completions)
        speed = stats.generated_tokens / (now - self._began) or math.nan
        left = (
            self._to_come
            - self._settled
            - sum(len(row.tokens) for row in self._rows if row.finish is None)
        )
        log.info(
            "%d of %d prompts done, %d rows running, %.0f tokens/s, at most %.0f s left",
            *(done, stats.prompts, len(self._rows), speed, left / speed),
        )
