"""Times what a user types: dry run, no-op rerun, an empty job; and all of it on a fresh clone.

Benchmarks, not tests: machines are shared and noisy, so the numbers are a table with repeats.
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.records.errors import EmberError
from ember.records.provenance import source_root
from ember.studies.steps import makes
from ember.studies.workflow.cost.make import read_last_json
from ember.studies.workflow.cost.tables import WORKFLOW_STEPS

log = logging.getLogger(__name__)

MAIN = "results/p1_fig3.png"
GOALS = {"first figure": 720.0, "no-op rerun": 5.0, "dry run": 3.0, "dry run of all": 3.0}


@makes(WORKFLOW_STEPS)
def time_steps(products: Sequence[str], settings: Mapping, given: Mapping) -> list[dict]:
    """Rows of WORKFLOW_STEPS for this checkout's workflow as it runs in the working folder.

    "version": Snakemake's own start. "dry run of all": every job of every programme, as if nothing
    were made. "no-op rerun": `products`, which must be up to date (else the row is skipped and
    nothing runs). "empty job": a script that only makes its file, in a row of `empty_jobs` of them,
    less one; "its process": the part of it that Snakemake's benchmark counts as the job's.

    Args: settings: repeats, empty_jobs; given: what the command line set over the configuration.
    """
    root, folder, jobs = source_root(), Path.cwd(), settings["empty_jobs"]
    snakemake = [sys.executable, "-m", "snakemake"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        configuration = Path(scratch) / "given.json"
        configuration.write_text(json.dumps(dict(given)))
        workflow = ["--snakefile", str(root / "Snakefile"), "--directory", str(folder)]
        workflow += ["--nolock", "--cores", "1", "--configfile", str(configuration)]
        workflow += ["--rerun-triggers", "mtime", "params", "input", "software-env"]
        dry = [*snakemake, "all", "--forceall", "--dry-run", "--quiet", "rules", *workflow]
        again = [*snakemake, *products, *workflow]
        idle = not _jobs(_run([*again, "--dry-run"], folder))
        for repeat in range(settings["repeats"]):
            seconds, _ = _timed([*snakemake, "--version"], folder)
            rows.append(_row("version", repeat, seconds, None))
            rows.append(_row("dry run of all", repeat, *_seconds_and_jobs(dry, folder)))
            if idle:
                rows.append(_row("no-op rerun", repeat, *_seconds_and_jobs(again, folder)))
            else:
                skipped = {"status": "skipped", "reason": "its targets are not up to date"}
                rows.append(_row("no-op rerun", repeat, None, None) | skipped)
            rows += _empty_jobs(snakemake, Path(scratch) / f"run{repeat}", repeat, jobs)
    return rows


_EMPTY = """
rule all:
    input:
        expand("made/{{n}}", n=range({jobs})),


rule make:
    output:
        "made/{{n}}",
    benchmark:
        "benchmarks/{{n}}.jsonl"
    script:
        "make.py"
"""


def _empty_jobs(snakemake: list[str], folder: Path, repeat: int, jobs: int) -> list[dict]:
    seconds, processes = {}, []
    for count in (1, 1 + jobs):
        place = folder / str(count)
        place.mkdir(parents=True)
        (place / "Snakefile").write_text(_EMPTY.format(jobs=count))
        (place / "make.py").write_text("open(snakemake.output[0], 'w').close()\n")
        seconds[count], _ = _timed([*snakemake, "--cores", "1"], place)
        processes = [read_last_json(file)["s"] for file in place.glob("benchmarks/*.jsonl")]
    each = (seconds[1 + jobs] - seconds[1]) / jobs
    process = sum(processes) / len(processes)
    return [_row("empty job", repeat, each, 1), _row("its process", repeat, process, 1)]


def time_workflow(repository: Path, *, repeats: int = 5) -> list[dict]:
    """Rows of `WORKFLOW_STEPS` for a clone of `repository`'s HEAD. Raises `EmberError`.

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
    drop = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "MAKEFLAGS", "MAKELEVEL"}
    if command[0] != sys.executable:
        # What a clone runs is its own, whatever environment this one runs in.
        drop |= {"PYTHONPATH", "VIRTUAL_ENV"}
    env = {key: value for key, value in os.environ.items() if key not in drop}
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise EmberError(f"{' '.join(command)} failed ({done.returncode}):\n{tail}")
    return done.stdout


def _jobs(output: str) -> int:
    found = re.search(r"^total\s+(\d+)", output, re.M)
    return int(found[1]) if found else 0


def _row(step: str, repeat: int, seconds: float | None, jobs: int | None) -> dict:
    row = {"step": step, "repeat": repeat, "seconds": seconds, "jobs": jobs}
    row |= {"goal_s": GOALS.get(step), "cores": os.cpu_count() or 1, "evidence": "measured"}
    return row | {"status": "ok", "reason": None}
