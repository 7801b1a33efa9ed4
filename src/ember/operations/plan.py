"""The jobs that Snakemake plans, as plain data: for commands that ask the workflow about itself.

A dry run in a process of its own, read through a logger plugin (`workflow/plugins`), so that
targets, profiles and `--config` mean here just what they mean on Snakemake's command line.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ember.records.errors import EmberError
from ember.records.provenance import source_root


class BadPlan(EmberError):
    """Snakemake refuses the targets or the configuration; its last lines are in the message."""


@dataclass(frozen=True)
class PlannedJob:
    """One job of a dry run. Paths are relative to the folder the workflow runs in.

    resources: as the scheduler sees them (`mem_mb`, `runtime` in minutes, `gpu`, `timing`, …).
    reason: why it would run, in Snakemake's words ("" for one that would not).
    """

    number: int
    rule: str
    wildcards: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    logs: tuple[str, ...]
    benchmark: str | None
    threads: int
    resources: dict
    reason: str

    @property
    def name(self) -> str:
        """Rule and wildcard values, as the benchmark's file is called: `build_corpus_long`."""
        return "_".join([self.rule, *self.wildcards.values()])


def planned_jobs(
    targets: Sequence[str] = ("all",),
    *,
    profile: str = "local",
    config: Sequence[str] = (),
    every: bool = False,
    folder: Path | str = ".",
) -> list[PlannedJob]:
    """Jobs that would run for `targets`, or with `every` all jobs behind them, done or not.

    Args: config: words as after `--config`, such as `scale=smoke`; folder: where the workflow runs
    (the checkout, or what `--directory` would name). Rules without a script (named targets) are
    left out. Raises `BadPlan`.
    """
    root = source_root()
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "jobs.jsonl"
        command = [sys.executable, "-m", "snakemake", *targets, "--dry-run", "--nolock"]
        command += ["--forceall"] if every else []
        command += ["--snakefile", str(root / "Snakefile"), "--profile", str(root / profile)]
        command += ["--directory", str(folder), "--logger", "plan"]
        command += ["--logger-plan-file", str(lines)]
        command += ["--config", *config] if config else []
        done = subprocess.run(
            command,
            env=_environment(root),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise BadPlan(_refusal(done.stdout, targets))
        jobs = [_job(json.loads(line)) for line in lines.read_text().splitlines()]
    return [job for job in jobs if job.outputs]


def _environment(root: Path) -> dict:
    path = [str(root / "workflow" / "plugins"), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def _refusal(output: str, targets: Sequence[str]) -> str:
    known = ("Config file", "Using profile", "Assuming unrestricted")
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(known)]
    tail = "\n".join(lines[-12:])
    return f"the workflow cannot plan {' '.join(targets)}\n{tail}"


def _job(line: dict) -> PlannedJob:
    names = ("inputs", "outputs", "logs")
    return PlannedJob(**line | {name: tuple(line[name]) for name in names})
