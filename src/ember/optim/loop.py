"""The step loop that every training shares: a log, a resumable state, a clean end.

Contract. A `Task` does one step at a time and can be saved. A run that was killed and resumed makes
the same steps as one that was not, so a task whose step depends on its state and the step's number
alone ends with the same weights, bit for bit on the CPU. The state file belongs to one `key`:
settings, data and code hashed together, so that a changed configuration starts anew.
"""

import contextlib
import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Protocol

import torch

from ember.records.atomic import atomic_file
from ember.records.errors import EmberError

log = logging.getLogger(__name__)


class BadTraining(EmberError):
    """Settings or data no training can use; the message names them and the remedy."""


class Diverged(EmberError):
    """The loss or the gradient is not finite."""


class Interrupted(EmberError):
    """SIGINT or SIGTERM; the state was saved, the same call resumes."""


class Task(Protocol):
    """What is trained."""

    device: torch.device

    def step(self, number: int) -> dict[str, float]:
        """One step (0-based): numbers to log, such as the loss. Raises `Diverged`."""

    def state_dict(self) -> dict:
        """Everything that later steps depend on, as `torch.save` and a safe load take it."""

    def load_state_dict(self, state: dict) -> None:
        """Continues from a state."""


@dataclass
class _Progress:
    """How far a run is; part of its state."""

    step: int = 0
    seconds: float = 0.0  # of steps, over all resumed parts
    rows: list[dict] = field(default_factory=list)
    pending: list[dict[str, float]] = field(default_factory=list)  # steps since the last row

    def report(self, steps: int, validated: Mapping[str, float]) -> None:
        """Adds a row to the log and says how far the run is."""
        means = {
            name: sum(each[name] for each in self.pending) / len(self.pending)
            for name in self.pending[0]
        }
        self.rows.append({"step": self.step, "seconds": self.seconds, **means, **validated})
        self.pending = []
        log.info(
            "step %d/%d %s, %.0f s so far, about %.0f s left",
            self.step,
            steps,
            ", ".join(f"{name} {value:.3f}" for name, value in {**means, **validated}.items()),
            self.seconds,
            (steps - self.step) * self.seconds / self.step,
        )


def run(
    task: Task,
    steps: int,
    *,
    log_every: int,
    validate: Callable[[], Mapping[str, float]] | None = None,
    validate_every: int = 0,
    stop: Callable[[Mapping[str, float]], bool] | None = None,
    state: Path | None = None,
    key: str = "",
    checkpoint_seconds: float = 30.0,
) -> list[dict]:
    """Does `steps` steps of a task and returns the log.

    A row has step, seconds (of steps alone, over all resumed parts), the means of what the steps
    gave since the row before, and what `validate` gave. There is one every `log_every` steps, at
    each validation (`validate_every`; 0: never) and at the end. `stop` is asked after each row and
    ends the run before its last step where it says so.

    With `state`, a resumable state is written there every `checkpoint_seconds`, at the end and on
    SIGINT or SIGTERM, and used if its key is `key`. Remove it when the results are safe elsewhere.

    Raises `Interrupted` after a signal; passes on the task's `Diverged`, and drops the state then.
    """
    progress = _resumed(task, state, key) if state is not None else _Progress()
    saved, stopped = time.monotonic(), _stops(stop, progress)
    with _signals() as received:
        while progress.step < steps and not stopped:
            started = time.perf_counter()
            try:
                progress.pending.append(task.step(progress.step))
            except Diverged:
                if state is not None:
                    state.unlink(missing_ok=True)  # it leads to the same end
                raise
            progress.step += 1
            progress.seconds += time.perf_counter() - started
            last = progress.step == steps
            validated = validate_every and (last or progress.step % validate_every == 0)
            if validated or last or progress.step % max(1, log_every) == 0:
                progress.report(steps, validate() if validated and validate else {})
                stopped = _stops(stop, progress)
            done = last or stopped
            due = done or received or time.monotonic() - saved >= checkpoint_seconds
            if state is not None and due:
                _save(task, progress, state, key)
                saved = time.monotonic()
            if received and not done:
                raise Interrupted(
                    f"training was stopped by {received[0].name} after step {progress.step} of "
                    f"{steps}.\n"
                    + (
                        f"Run the same command again: it resumes from {state}."
                        if state is not None
                        else "No state was asked for: the same command starts anew."
                    )
                )
    return progress.rows


def state_key(**parts) -> str:
    """One hash over everything a resumed run must have in common with the run that it resumes."""
    text = json.dumps(parts | {"torch": torch.__version__}, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _stops(stop: Callable[[Mapping[str, float]], bool] | None, progress: _Progress) -> bool:
    """Whether the newest row ends the run, also a resumed one that has ended already."""
    fresh = progress.rows and progress.rows[-1]["step"] == progress.step
    return bool(stop and fresh and stop(progress.rows[-1]))


def _save(task: Task, progress: _Progress, path: Path, key: str) -> None:
    """Writes the state; a reader finds the old one or the new one, never a part."""
    with atomic_file(path) as part:
        torch.save({"key": key, "task": task.state_dict(), **vars(progress)}, part)
    log.info("state of step %d kept in %s", progress.step, path)


def _resumed(task: Task, path: Path, key: str) -> _Progress:
    """Continues from a state with this key; any other is left to be overwritten."""
    if not path.is_file():
        return _Progress()
    try:
        content = torch.load(path, map_location=task.device, weights_only=True)
        found = content.pop("key")
    # A cut or foreign file fails in the unpickler, in zipfile or in a missing entry.
    except Exception as error:
        log.warning("%s is not a training state (%s): training starts anew", path, error)
        return _Progress()
    if found != key:
        log.info("%s is of another configuration or code: training starts anew", path)
        return _Progress()
    task.load_state_dict(content.pop("task"))
    progress = _Progress(**content)
    log.info("resumed at step %d from %s", progress.step, path)
    return progress


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM: acting amid a step would leave half-updated weights."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, _frame):
        received.append(signal.Signals(number))
        log.warning("%s: stopping after this step", received[-1].name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(value):
    if is_dataclass(value):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a state key")
