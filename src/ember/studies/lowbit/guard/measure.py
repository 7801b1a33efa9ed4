"""Processes that grow at a known rate, under the guard."""

import logging
import mmap
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ember.measure.guard import Limits, run_guarded
from ember.measure.turns import rounds
from ember.records.errors import EmberError
from ember.studies.lowbit.guard.tables import LOWBIT_GUARD
from ember.studies.rows import grouped, summary_row
from ember.studies.steps import makes

log = logging.getLogger(__name__)

# It says in a shared file what it holds, and since when, before it takes more.
GROW = """
import mmap, struct, sys, time
path, rate = sys.argv[1], float(sys.argv[2])
with open(path, "r+b") as file:
    said = mmap.mmap(file.fileno(), 16)
held, step, began = [], 2_000_000, time.monotonic()
while True:
    held.append(bytearray(b"1") * step)
    took = time.monotonic() - began
    said[:16] = struct.pack("dd", len(held) * step / 1e6, took)
    time.sleep(max(0.0, len(held) * step / 1e6 / rate - took))
"""


class NotEnded(EmberError):
    """A growing process that the guard did not end."""


@makes(LOWBIT_GUARD)
def measure_overshoot(
    *, limit_mb: int, rate_mb_s: int, polls_s: Sequence[float], repeats: int
) -> list[dict]:
    """Rows of LOWBIT_GUARD. Raises NotEnded where the guard failed."""
    runs = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "held"
        for number, order in rounds(polls_s, range(repeats)):
            for poll_s in order:
                runs.append(_run(path, limit_mb, rate_mb_s, poll_s))
                log.info("run %d, polled every %g s: %s", number + 1, poll_s, runs[-1])
    rows = []
    for (poll_s,), some in sorted(grouped(runs, "poll_s").items()):
        row, _ = summary_row(LOWBIT_GUARD, some)
        rows.append(row | {"bound_mb": row["rate_mb_s_max"] * poll_s})
    return rows


def _run(path: Path, limit_mb: int, rate_mb_s: int, poll_s: float) -> dict:
    path.write_bytes(bytes(16))
    limits = Limits(gb={"host": limit_mb / 1e3}, poll_s=poll_s, wall_s=60.0, grace_s=1.0)
    watch = run_guarded([sys.executable, "-c", GROW, str(path), str(rate_mb_s)], limits)
    if watch.ended != "over_limit":
        raise NotEnded(
            f"a process growing by {rate_mb_s} MB/s ended as {watch.ended}: {watch.why}\n"
            "raise the rate, or lower the limit, in the configuration's section lowbit.guard"
        )
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 16) as said:
        held, took = struct.unpack("dd", said[:16])
    return {
        "poll_s": poll_s,
        "limit_mb": float(limit_mb),
        "rate_mb_s": held / took,
        "over_mb": held - limit_mb,
        "poll_ms": watch.poll_ms,
        "evidence": "measured",
    }
