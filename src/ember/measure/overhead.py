"""What of a job's time is not its own work, by time stamps.

    with overhead.part("model_load"):
        …
    overhead.seconds()   # {"model_load": 0.4}

Parts do not overlap: inside a part, another one's time counts for the outer. Only the main thread
is timed, for the others run beside it. A job leaves the times in its record (`record_file`).
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ember.records.provenance import is_provenance

_total: dict[str, float] = {}
_open: list[str] = []


@contextmanager
def part(name: str) -> Iterator[None]:
    """Time the block as `name`, unless it stands inside another part."""
    if _open or threading.current_thread() is not threading.main_thread():
        yield
        return
    _open.append(name)
    began = time.perf_counter()
    try:
        yield
    finally:
        _total[name] = _total.get(name, 0.0) + time.perf_counter() - began
        _open.clear()


def seconds() -> dict[str, float]:
    """Seconds of the parts that have ended."""
    return dict(_total)


def process_age_s() -> float | None:
    """Seconds since this process was created (to 10 ms), where the system tells (Linux)."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        born = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - born)
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def record_file(scale: str, name: str, root: Path | str = ".") -> Path:
    """The record of a job: its provenance, the digests of its products and the parts of its time.

    Beside Snakemake's benchmark of it. `name`: rule and wildcard values.
    """
    return Path(root) / "results" / str(scale) / "benchmarks" / f"{name}.job.json"


def read_record(scale: str, name: str, root: Path | str = ".") -> dict:
    """The record of a job; empty where there is none that can be used."""
    try:
        record = json.loads(record_file(scale, name, root).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if is_provenance(record) else {}
