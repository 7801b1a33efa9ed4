"""What of a process's time is not its own work: start, imports, model loading, and the like.

    overhead.watch_imports()
    with overhead.part("model_load"):
        …
    overhead.seconds()   # {"imports": 2.1, "model_load": 0.4}

Parts are exclusive: an import inside another part counts as import only. Only the thread that
called `watch_imports` (or `part` first) is watched, for the others run beside it.
"""

import builtins
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTS = "imports"


class _Clock:
    def __init__(self):
        self.thread = threading.get_ident()
        self.open: list[str] = []
        self.since = 0.0
        self.total: dict[str, float] = {}

    def enter(self, name: str) -> None:
        self.charge()
        self.open.append(name)

    def leave(self) -> None:
        self.charge()
        self.open.pop()

    def charge(self) -> None:
        now = time.perf_counter()
        if self.open:
            self.total[self.open[-1]] = self.total.get(self.open[-1], 0.0) + now - self.since
        self.since = now


_clock = _Clock()


@contextmanager
def part(name: str) -> Iterator[None]:
    """Time the block as `name`, less the parts inside it."""
    if threading.get_ident() != _clock.thread:
        yield
        return
    _clock.enter(name)
    try:
        yield
    finally:
        _clock.leave()


def watch_imports() -> None:
    """Time import statements from now on, as the part "imports"."""
    if getattr(builtins.__import__, "_watched", False):
        return
    original = builtins.__import__

    def watched(*args, **kwargs):
        # Statements of modules that are being imported belong to the statement that began it.
        if threading.get_ident() != _clock.thread or _clock.open[-1:] == [IMPORTS]:
            return original(*args, **kwargs)
        _clock.enter(IMPORTS)
        try:
            return original(*args, **kwargs)
        finally:
            _clock.leave()

    watched._watched = True
    builtins.__import__ = watched


def seconds() -> dict[str, float]:
    """Seconds by part until now."""
    _clock.charge()
    return dict(_clock.total)


def process_age_s() -> float | None:
    """Seconds since this process was created (to 10 ms), where the system tells (Linux)."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        born = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - born)
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def cost_file(scale: str, name: str, root: Path | str = ".") -> Path:
    """Where a job leaves the parts of its time: beside Snakemake's benchmark of it."""
    return Path(root) / "results" / str(scale) / "benchmarks" / f"{name}.parts.json"
