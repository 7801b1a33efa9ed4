"""Continuous batching: prompts and their candidates through a fixed number of rows.

Contract. A `Rollout` is one call of `Engine.generate`. Rows of the batch decode together; a prompt
is prefilled once, when a row and memory for it are free, and its candidates share its KV until the
last one has ended. A row that ends leaves at once and the next candidate or prompt takes its place.
What a candidate samples depends on its prompt, parameters and number alone. Iterating gives chunks
of tokens as they come; `cancel` ends prompts early. What runs on which hardware is a `Batch`.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from torch import Tensor

from ember.backends.sampling import SamplingParams, prompt_key, row_seed
from ember.engine.stops import Detokenize, TextStream, final_text
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

SAY_EVERY = 5.0  # seconds between lines of progress


class NotFinite(EmberError):
    """The model gave logits that are no numbers."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    `logprobs` and `raw_logprobs` belong to `tokens` (see `sampling.sample`). `finish_reason` is
    "stop", "length" or "cancelled"; `stop_reason` the stop token's id or the stop string.
    `versions` is the weights version that each token was sampled with. `cached_tokens` of the
    prompt came from the prefix cache. `text` needs a detokenizer and ends before the stop string.
    `alternatives`: for each token the most likely ids with their raw log-probabilities.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    versions: tuple[str, ...]
    raw_logprobs: tuple[float, ...] = ()
    stop_reason: int | str | None = None
    text: str | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] | None = None


@dataclass(frozen=True)
class Chunk:
    """New tokens of one candidate; the last chunk of a candidate has its finish reason."""

    prompt: int
    candidate: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    text: str | None
    finish_reason: str | None


@dataclass
class StepBatch:
    """Steps in a row with the same rows: what they read of the KV, and how long they took.

    `prompt_tokens` are read once a step, all prompts together; `own_tokens` is the sum over all
    steps and rows of the tokens a row has of its own. `ms` includes sampling.
    """

    rows: int
    prompts: int
    prompt_tokens: int
    steps: int = 0
    own_tokens: int = 0
    ms: float = 0.0


@dataclass
class RolloutStats:
    """What a rollout did, as plain data; bytes are of KV in use (prompts stored, rows' slots)."""

    prompts: int = 0
    candidates: int = 0
    slots: int = 0
    prefills: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefix_hits: int = 0
    generated_tokens: int = 0
    discarded_tokens: int = 0  # sampled behind a stop before it was seen
    seconds: float = 0.0
    peak_kv_bytes: int = 0
    reserved_kv_bytes: int = 0
    batches: list[StepBatch] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(batch.steps for batch in self.batches)

    @property
    def tokens_per_s(self) -> float:
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    @property
    def occupancy(self) -> float:
        """Mean share of the slots that a step had in use."""
        used = sum(batch.rows * batch.steps for batch in self.batches)
        return used / (self.steps * self.slots) if self.steps else 0.0

    def as_dict(self) -> dict:
        more = ("steps", "tokens_per_s", "occupancy")
        return asdict(self) | {name: getattr(self, name) for name in more}


class Received(Protocol):
    """What rows sampled, on its way to the host."""

    def lists(self) -> tuple[list[list[int]], list[list[float]], list[list[float]], list | None]:
        """Waits; tokens, logprobs, raw logprobs by row and step, and alternatives if any."""


class Batch(Protocol):
    """Rows that decode together on some hardware. Row numbers are places in the batch."""

    slots: int
    interval: int  # steps between looks at what was sampled
    lag: int  # looks that may be on their way while the next steps run

    def running(self):
        """The context in which all else is called."""

    def reserve(self, prompt: "Prompt") -> bool:
        """Takes memory for a prompt; False: there is none yet."""

    def prefill(self, prompt: "Prompt", phase) -> tuple[Tensor, int]:
        """Runs a prompt for which memory is reserved: logits (1, V), and tokens reused."""

    def join(self, prompt: "Prompt", rows: Sequence["Row"], logits: Tensor) -> None:
        """Appends rows, which sample their first token from the logits."""

    def sample(self) -> None:
        """Every row chooses a token from its logits."""

    def advance(self) -> None:
        """Every row runs the token that it chose last."""

    def receive(self) -> Received:
        """What was sampled since the last call."""

    def leave(self, rows: Sequence[int]) -> None:
        """Rows end; see `compact` for where the others are then."""

    def release(self, prompt: "Prompt") -> None:
        """Frees a prompt's memory."""

    def clear(self) -> None:
        """Ends all rows and frees all prompts."""

    def mark(self):
        """A point of time in the work; `between` two of them lie milliseconds."""

    def between(self, begin, end) -> float: ...

    def kv_bytes(self) -> tuple[int, int]:
        """Bytes of KV in use, and reserved."""


class Prompt:
    """A prompt, how far its candidates are, and where a batch has put it (`place`)."""

    def __init__(self, number: int, tokens: Sequence[int], params: SamplingParams, candidates: int):
        self.number, self.tokens, self.params = number, tokens, params
        self.candidates, self.started, self.ended = candidates, 0, 0
        self.cached = 0
        self.logits: Tensor | None = None  # (1, V), until the last candidate has started
        self.place = None
        self.key = prompt_key(tokens)


class Row:
    """One candidate: its parameters, and what it has sampled as far as the host knows."""

    def __init__(self, prompt: Prompt, candidate: int, decode: Detokenize | None):
        params = prompt.params
        self.prompt, self.candidate, self.params = prompt, candidate, params
        self.seed = row_seed(params.seed, prompt.key, candidate)
        self.issued = 0  # tokens that it has been told to sample
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.raw: list[float] = []
        self.versions: list[str] = []
        self.alternatives: list | None = [] if params.logprobs else None
        self.finish: str | None = None
        self.stop_reason: int | str | None = None
        self.text = TextStream(decode, params.stop) if decode is not None and params.stop else None
        self.streamed = 0  # tokens given out


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


class Rollout:
    """Iterate for chunks; afterwards (or after `run`) `completions` and `stats` are complete."""

    def __init__(
        self,
        batch: Batch,
        prompts: Sequence[Prompt],
        *,
        phase,
        guard,
        version: Callable[[], str],
        failed: Callable[[], None],
        decode: Detokenize | None = None,
    ):
        """`phase(name)` times a block; `guard()` is held while rows run; `version()` names the
        weights; `failed()` is called when logits are no numbers."""
        self._batch, self._phase, self._guard = batch, phase, guard
        self._version, self._failed, self._decode = version, failed, decode
        self._waiting = deque(prompts)
        self._rows: list[Row] = []
        self._pending: deque[tuple[Received, list[Row], int, str]] = deque()
        self._cancelled: set[int] = set()
        self._marks: list[tuple[StepBatch, object, object]] = []
        self._found: list[list[Completion | None]] = [[None] * p.candidates for p in prompts]
        self._settled, self._to_come = 0, sum(p.candidates * p.params.max_tokens for p in prompts)
        self._began = self._said = time.perf_counter()
        self._looks = False  # someone wants tokens as they come
        self.stats = RolloutStats(
            prompts=len(prompts),
            candidates=sum(p.candidates for p in prompts),
            slots=batch.slots,
            prompt_tokens=sum(len(p.tokens) for p in prompts),
            reserved_kv_bytes=batch.kv_bytes()[1],
        )

    @property
    def completions(self) -> list[list[Completion]]:
        """Of every prompt, in order; None for candidates that have not ended."""
        return self._found

    def run(self) -> list[list[Completion]]:
        """Runs to the end."""
        for _ in self._rounds():
            pass
        return self._found

    def __iter__(self) -> Iterator[Chunk]:
        self._looks = True
        for changed in self._rounds():
            yield from map(self._chunk, changed)

    def cancel(self, prompt: int | None = None) -> None:
        """Ends a prompt's candidates, or all, at the next look; they keep what they have."""
        every = range(len(self._found))
        self._cancelled.update(every if prompt is None else [prompt])

    def _rounds(self) -> Iterator[list[Row]]:
        """Rows that have new tokens or have ended, after every look."""
        with self._guard():
            self._began = self._said = time.perf_counter()
            try:
                more = True
                while more:
                    with self._batch.running():  # not across a yield: it is the thread's state
                        changed, more = self._round()
                    yield list(changed.values())
            finally:
                self._close()

    def _round(self) -> tuple[dict[int, Row], bool]:
        """Steps up to the next look; changed rows, and whether anything is left to run."""
        batch, changed = self._batch, self._end_cancelled()
        self._admit()
        if not self._rows:
            return changed | self._receive(0), False
        steps, begin = self._steps_ahead(), batch.mark()
        for step in range(steps):
            if step:
                self._advance()
            with self._phase("sampling"):
                batch.sample()
        # The step that runs a row's token number i reads i tokens of its own.
        read = sum(sum(range(row.issued + 1, row.issued + steps)) for row in self._rows)
        for row in self._rows:
            row.issued += steps
        self._note(begin, steps - 1, read)
        with self._phase("transfer"):
            self._pending.append((batch.receive(), list(self._rows), steps, self._version()))
            changed |= self._receive(batch.lag)
        self._say()
        self._leave()
        if self._rows:
            begin = batch.mark()
            self._advance()
            self._note(begin, 1, sum(row.issued for row in self._rows))
        return changed, True

    def _advance(self) -> None:
        with self._phase("decode"):
            self._batch.advance()

    def _steps_ahead(self) -> int:
        """Until the first row must end, or someone has to look."""
        steps = min(row.params.max_tokens - row.issued for row in self._rows)
        looks = self._looks or any(r.params.stop or r.params.stop_token_ids for r in self._rows)
        return min(steps, self._batch.interval) if looks else steps

    def _admit(self) -> None:
        """Fills free rows: first the rest of the prompt that has started, then the next ones."""
        batch, stats = self._batch, self.stats
        while self._waiting and len(self._rows) < batch.slots:
            prompt = self._waiting[0]
            count = min(batch.slots - len(self._rows), prompt.candidates - prompt.started)
            if not prompt.started:
                if not batch.reserve(prompt):
                    return
                prompt.logits, prompt.cached = batch.prefill(prompt, self._phase)
                stats.prefills += 1
                stats.cached_tokens += prompt.cached
                stats.prefix_hits += prompt.cached > 0
            first = prompt.started
            rows = [Row(prompt, first + c, self._decode) for c in range(count)]
            batch.join(prompt, rows, prompt.logits)
            self._rows += rows
            prompt.started += count
            if prompt.started == prompt.candidates:
                prompt.logits = None
                self._waiting.popleft()
            stats.peak_kv_bytes = max(stats.peak_kv_bytes, batch.kv_bytes()[0])

    def _receive(self, lag: int) -> dict[int, Row]:
        """Takes in what has arrived but for the last `lag` looks; rows that have new tokens."""
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
            self._failed()
            raise NotFinite(
                f"the logits of prompt {row.prompt.number} are no numbers (weights version "
                f"{version!r}).\nCheck the weights for NaN and infinity; nothing of them was kept."
            )
        end, stops = len(tokens), row.params.stop_token_ids
        for place, token in enumerate(tokens) if stops or row.params.stop else ():
            found = token if token in stops else None
            if found is None and row.params.stop:
                found = row.text.add(token)
            if found is not None:
                row.finish, row.stop_reason, end = "stop", found, place + 1
                break
        self.stats.discarded_tokens += len(tokens) - end
        self.stats.generated_tokens += end
        row.tokens += tokens[:end]
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
        self._found[prompt.number][row.candidate] = Completion(
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
        self._batch.leave(leaving)
        compact(self._rows, leaving)
        for row in gone:
            row.prompt.ended += 1
            if row.prompt.ended == row.prompt.candidates:
                self._batch.release(row.prompt)

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
            if prompt.started and prompt.ended == prompt.started:
                self._batch.release(prompt)
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

    def _note(self, begin, steps: int, own_tokens: int) -> None:
        """Counts steps of the rows of now, which read so many tokens of their own."""
        prompts = {id(row.prompt): len(row.prompt.tokens) for row in self._rows}
        same = (len(self._rows), len(prompts), sum(prompts.values()))
        found = self.stats.batches
        if not found or (found[-1].rows, found[-1].prompts, found[-1].prompt_tokens) != same:
            found.append(StepBatch(*same))
        found[-1].steps += steps
        found[-1].own_tokens += own_tokens
        self._marks.append((found[-1], begin, self._batch.mark()))

    def _close(self) -> None:
        with self._batch.running():
            self._batch.clear()
        self._pending.clear()
        self._rows.clear()
        self._waiting.clear()
        self.stats.seconds = time.perf_counter() - self._began
        for batch, begin, end in self._marks:
            batch.ms += self._batch.between(begin, end)
        self._marks.clear()
        if self.stats.seconds > SAY_EVERY:
            log.info("%s", self._summary())

    def _say(self) -> None:
        now, stats = time.perf_counter(), self.stats
        if now - self._said < SAY_EVERY:
            return
        self._said = now
        done = sum(None not in row for row in self._found)
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

    def _summary(self) -> str:
        stats = self.stats
        return (
            f"{stats.candidates} candidates of {stats.prompts} prompts: "
            f"{stats.generated_tokens} tokens in {stats.seconds:.1f} s, "
            f"{stats.tokens_per_s:.0f} tokens/s, {100 * stats.occupancy:.0f} % of {stats.slots} "
            f"rows occupied, {stats.cached_tokens} prompt tokens reused"
        )
