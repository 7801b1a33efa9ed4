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
from ember.records.remedy import inherited_options


class BadPlan(EmberError):
    """Snakemake refuses the targets or the configuration; its last lines are in the message."""


@dataclass(frozen=True)
class Settings:
    """How Snakemake is called: a profile, words as after --config, files as after --configfile."""

    profile: str = "local"
    config: tuple[str, ...] = ()
    configfiles: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Of a command line; nothing may follow them but options."""
        words = ["--profile", self.profile]
        words += ["--configfile", *self.configfiles] if self.configfiles else []
        return words + (["--config", *self.config] if self.config else [])


@dataclass(frozen=True)
class PlannedJob:
    """One job of a dry run. Paths are relative to the folder the workflow runs in.

    resources: as the scheduler sees them (`mem_mb`, `runtime` in minutes, `gpu`, `timing`, …).
    reason: why it would run, in Snakemake's words ("" for one that would not).
    """

    rule: str
    wildcards: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    benchmark: str | None = None
    threads: int = 1
    resources: dict | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """Rule and wildcard values, as the benchmark's file is called: `build_corpus_long`."""
        return "_".join([self.rule, *self.wildcards.values()])

    def asks(self, resource: str) -> int:
        """How much of a resource it asks for; 0 where it does not say a number."""
        amount = (self.resources or {}).get(resource)
        return amount if isinstance(amount, int) else 0


def profile_folder(profile: str) -> Path:
    """The folder of a profile: of this checkout (`local`, `slurm`) or a path. Raises `BadPlan`."""
    for folder in (source_root() / profile, Path(profile).resolve()):
        if (folder / "config.yaml").is_file():
            return folder
    raise BadPlan(f"{profile} is no profile (no config.yaml)\nchoose local or slurm")


def profile_settings(profile: str) -> dict:
    """What a profile's config.yaml says. Raises `BadPlan` where it cannot be read."""
    import yaml

    file = profile_folder(profile) / "config.yaml"
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise BadPlan(f"{file} cannot be read: {error}\nfix it, or take another profile") from None


def profile_scale(profile: str) -> str | None:
    """The scale that a profile's own configuration file asks for, None if it asks for none."""
    import yaml

    try:
        file = profile_folder(profile) / profile_settings(profile)["configfile"]
        return yaml.safe_load(file.read_text(encoding="utf-8"))["scale"]
    except (BadPlan, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def run_scale() -> str | None:
    """The scale that the profile of the run going on here asks for, None without one."""
    options = inherited_options() or []
    return profile_scale(options[1]) if options[:1] == ["--profile"] else None


def planned_jobs(
    targets: Sequence[str] = ("all",),
    settings: Settings | None = None,
    *,
    every: bool = False,
    folder: Path | str = ".",
) -> list[PlannedJob]:
    """Jobs that would run for `targets`, or with `every` all jobs they come from, done or not.

    folder: where the workflow runs (the checkout, or what `--directory` would name); one that does
    not exist is not created. Rules without a script (named targets) are left out. Raises `BadPlan`.
    """
    root, settings = source_root(), settings or Settings()
    files = [str(Path(file).resolve()) for file in settings.configfiles]
    profile = str(profile_folder(settings.profile))
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "jobs.jsonl"
        place = folder if Path(folder).is_dir() else Path(scratch) / "empty"
        command = [sys.executable, "-m", "snakemake", *targets, "--dry-run", "--nolock"]
        command += ["--forceall"] if every else []
        command += ["--snakefile", str(root / "Snakefile"), "--directory", str(place)]
        command += ["--logger", "plan", "--logger-plan-file", str(lines)]
        command += Settings(profile, settings.config, tuple(files)).words()
        done = subprocess.run(
            command,
            env=_environment(root),
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise BadPlan(_refusal(done.stdout, targets))
        jobs = [_job(json.loads(line)) for line in lines.read_text("utf-8").splitlines()]
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
    return PlannedJob(**line | {name: tuple(line[name]) for name in ("inputs", "outputs")})
