"""What every job that made the products cost: from their provenance and Snakemake's benchmarks.

Nothing is timed here: a job's time is what was recorded when it ran.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ember.measure.overhead import read_record
from ember.records.errors import BadProvenance, EmberError
from ember.records.provenance import describe_machine, provenance_of, size_bytes
from ember.studies.steps import makes
from ember.studies.workflow.cost.tables import OVERHEAD, PARTS, WORKFLOW_JOBS


@makes(WORKFLOW_JOBS)
def collect_jobs(
    products: Iterable[Path | str], stages: Mapping[str, str], root: Path | str = "."
) -> list[dict]:
    """Rows of WORKFLOW_JOBS for all jobs that made `products`, in the order they started.

    Args: products: files or directories relative to `root`, where the workflow ran; stages: the
    file of `rules/` by rule. Products without provenance (captions, CSV) are passed over: the table
    or figure beside them has it. Raises `BadProvenance` where no product has any.
    """
    root = Path(root)
    made: dict[tuple, dict] = {}
    waiting, seen = [str(product) for product in products], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        provenance = _provenance(root / path)
        if provenance is None or "job" not in provenance:
            continue
        made[provenance["config"].get("scale"), provenance["job"]["name"]] = provenance
        waiting += [entry["path"] for entry in provenance["inputs"]]
    if not made:
        raise BadProvenance("no product says which job made it\nrun the workflow, then ask again")
    rows = [_row(provenance, stages, root) for provenance in made.values()]
    return sorted(rows, key=lambda row: (row["started"], row["job"]))


def _provenance(path: Path) -> dict | None:
    try:
        return provenance_of(path)
    except (EmberError, OSError):
        return None  # damaged files are the doctor's business


def _row(made: dict, stages: Mapping[str, str], root: Path) -> dict:
    job, hardware, scale = made["job"], made["hardware"], made["config"].get("scale")
    times = _times(made, scale, root)
    gpus = hardware.get("gpus") or []
    return {
        "scale": scale,
        "stage": stages.get(made["rule"], "unknown"),
        "rule": made["rule"],
        "job": job["name"],
        "started": made["started"],
        **times,
        "threads": made["threads"],
        "timing": job["timing"],
        "output_bytes": sum(size_bytes(root / path) for path in made["outputs"]),
        "device": gpus[0]["name"] if gpus and job["gpus"] else "cpu",
        "machine": describe_machine(hardware),
        "node": hardware.get("node"),
        "evidence": "measured",
    }


def _times(made: dict, scale: str, root: Path) -> dict:
    """Wall time and its parts: of the run that made the product, or unknown."""
    name = made["job"]["name"]
    record = read_record(scale, name, root)
    bench = read_last_json(root / "results" / str(scale) / "benchmarks" / f"{name}.jsonl")
    times = record.get("times") or {}
    if record.get("started") != made["started"] or times.get("start_s") is None:
        # The record of another run, or none: only what the product itself says is known.
        unknown = dict.fromkeys((*PARTS, "cpu_s", "max_rss_mb"))
        return {"wall_s": made["seconds"], "wall_from": "job", **unknown}
    ended = times["start_s"] + times["elapsed_s"]
    # Snakemake's clock includes the process's end; one of another run would not fit.
    fits = bench.get("s", 0.0) > 0.95 * ended
    wall = bench["s"] if fits else ended
    parts = {key: times[key] for key in OVERHEAD if key != "exit_s"}
    parts["exit_s"] = max(0.0, wall - ended)
    parts["work_s"] = max(0.0, wall - sum(parts.values()))
    return {
        "wall_s": wall,
        "wall_from": "benchmark" if fits else "job",
        **parts,
        "cpu_s": bench.get("cpu_time") if fits else None,
        "max_rss_mb": bench.get("max_rss") if fits else None,
    }


def read_last_json(path: Path) -> dict:
    """The object in a JSON file, the last of a file of JSON lines; empty if there is none to read.

    Snakemake's benchmark files are such.
    """
    try:
        numbers = json.loads(path.read_text("utf-8").strip().splitlines()[-1])
        return numbers if isinstance(numbers, dict) else {}
    except (OSError, ValueError, IndexError):
        return {}
