"""Times what a newcomer types, on a fresh clone: installation, main job, no-op rerun, dry run.

A benchmark, not a test: machines are shared and noisy, so the numbers are a table with repeats.
"""

import logging
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from ember.records.errors import EmberError

log = logging.getLogger(__name__)

MAIN = "results/p1_fig3.png"
GOALS = {"first figure": 720.0, "no-op rerun": 5.0, "dry run": 3.0}


class CommandFailed(EmberError):
    """A timed command failed; its last lines are in the message."""


def time_workflow(repository: Path, *, repeats: int = 5) -> list[dict]:
    """Rows of `WORKFLOW_STEPS` for a clone of `repository`'s HEAD. Raises `CommandFailed`.

    "first figure" is `make results/p1_fig3.png` on a clone with no virtual environment, as the sum
    of its two parts, which are rows too: "installation" and "main job".
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "ember"
        _run(["git", "clone", "--quiet", str(repository), str(clone)], Path(folder))
        installation, _ = _timed(["make", ".venv/installed"], clone)
        main, output = _timed(["make", MAIN], clone)
        rows = [
            _row("installation", 0, installation, None),
            _row("main job", 0, main, _jobs(output)),
            _row("first figure", 0, installation + main, _jobs(output)),
        ]
        dry = [".venv/bin/snakemake", "--profile", "local", "-n"]
        for repeat in range(repeats):
            rows.append(_row("no-op rerun", repeat, *_seconds_and_jobs(["make", MAIN], clone)))
            rows.append(_row("dry run", repeat, *_seconds_and_jobs(dry, clone)))
    return rows


def _seconds_and_jobs(command: list[str], folder: Path) -> tuple[float, int]:
    seconds, output = _timed(command, folder)
    return seconds, _jobs(output)


def _timed(command: list[str], folder: Path) -> tuple[float, str]:
    began = time.perf_counter()
    output = _run(command, folder)
    seconds = time.perf_counter() - began
    log.info("%s: %.1f s", " ".join(command), seconds)
    return seconds, output


def _run(command: list[str], folder: Path) -> str:
    # The timed workflow is the clone's own, whatever environment this one runs in.
    drop = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MAKEFLAGS", "MAKELEVEL")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise CommandFailed(f"{' '.join(command)} failed ({done.returncode}):\n{tail}")
    return done.stdout


def _jobs(output: str) -> int:
    found = re.search(r"^total\s+(\d+)", output, re.M)
    return int(found[1]) if found else 0


def _row(step: str, repeat: int, seconds: float, jobs: int | None) -> dict:
    return {
        "step": step,
        "repeat": repeat,
        "seconds": seconds,
        "goal_s": GOALS.get(step),
        "jobs": jobs,
        "cores": os.cpu_count() or 1,
        "evidence": "measured",
        "status": "ok",
        "reason": None,
    }
