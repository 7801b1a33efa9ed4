"""What failed and killed jobs left in a working folder, found and removed (C-R).

A job that ends writes its record; its log says so in the last line. A log without that line is of a
job that failed or was killed, once no workflow runs. Snakemake removes the products of a failed job
and marks those of a killed one. Resumable state (training, shards) is kept: the next run goes on.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ember.measure.overhead import read_record, record_file
from ember.operations.doctor.bookkeeping import incomplete, workflows
from ember.records.atomic import writer
from ember.records.errors import EmberError


class StillRunning(EmberError):
    """A workflow runs in the folder."""


@dataclass(frozen=True)
class Left:
    """Something to remove, relative to the working folder, and why."""

    path: str
    why: str


def leftovers(root: Path = Path()) -> list[Left]:
    """What failed jobs left below `root`. Raises `StillRunning`."""
    if running := workflows(root):
        raise StillRunning(
            f"a workflow runs in this folder (process {running[0]}): its jobs are not failed yet.\n"
            "Wait until it ends."
        )
    found = {left.path: left for left in (*_logs(root), *_files(root))}
    return [found[path] for path in sorted(found)]


def remove(found: list[Left], root: Path = Path()) -> None:
    """Delete what `leftovers` found."""
    for left in found:
        path = root / left.path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _logs(root: Path) -> Iterator[Left]:
    """Logs of jobs that did not end, and records of products that they took along."""
    for log in sorted(root.glob("logs/*/*.log")):
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        if lines and " done in " in lines[-1]:
            continue
        said = next((line for line in reversed(lines) if "error" in line), "it was killed")
        yield Left(log.relative_to(root).as_posix(), f"the job failed: {said[-160:]}")
        scale, name = log.parent.name, log.stem
        products = [entry["path"] for entry in read_record(scale, name, root).get("products", ())]
        if products and not any((root / path).exists() for path in products):
            record = record_file(scale, name, root)
            for path in (record, record.with_name(f"{name}.jsonl")):
                if path.is_file():
                    why = "what the job made before is gone"
                    yield Left(path.relative_to(root).as_posix(), why)


def _files(root: Path) -> Iterator[Left]:
    """Half-written products, and tables of runs that failed."""
    for path in sorted((root / "results").rglob("*")):
        name = path.relative_to(root).as_posix()
        if found := writer(path.name):
            process, alive = found
            if alive is False:  # of one on another machine nobody here knows
                yield Left(name, f"a killed job's temporary (process {process})")
        elif path.is_file() and incomplete(root, name):
            yield Left(name, "its job was killed")
        elif path.suffix == ".parquet" and len(path.relative_to(root).parts) > 2 and _failed(path):
            yield Left(name, "it has rows of runs that failed: they are measured again")


def _failed(path: Path) -> bool:
    import pyarrow.parquet as parquet

    try:
        if "status" not in parquet.read_schema(path).names:
            return False
        return "failed" in parquet.read_table(path, columns=["status"])["status"].to_pylist()
    except (OSError, ValueError):
        return False  # damaged: `ember doctor` says how
