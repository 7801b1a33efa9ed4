"""What every job that made the products cost: from their provenance and Snakemake's benchmarks.

`collect_jobs` walks back from products (or takes a whole results folder), `cost_by_rule` sums up.
Nothing is timed here: a job's time is what was recorded when it ran.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from ember.measure.overhead import read_record
from ember.records.errors import BadProvenance, EmberError
from ember.records.provenance import describe_machine, provenance_of, size_bytes

ALL = "all"
OVERHEAD = ("start_s", "imports_s", "model_load_s", "provenance_s", "exit_s")
PARTS = (*OVERHEAD, "work_s")


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


def cost_by_rule(jobs: Iterable[dict], steps: Iterable[dict], goal: float) -> list[dict]:
    """Rows of WORKFLOW_COST: by rule, by stage and in all, for each scale.

    Args: jobs: rows of WORKFLOW_JOBS; steps: rows of WORKFLOW_STEPS, whose empty jobs say what
    Snakemake adds around a job; goal: for the overhead's share of the total.
    """
    jobs = list(jobs)
    around = scheduling_s(steps)
    rows = []
    for scale in dict.fromkeys(job["scale"] for job in jobs):
        here = [job for job in jobs if job["scale"] == scale]
        total = sum(job["wall_s"] for job in here)
        groups: dict[tuple[str, str], list[dict]] = {}
        for job in here:
            for key in ((job["stage"], job["rule"]), (job["stage"], ALL), (ALL, ALL)):
                groups.setdefault(key, []).append(job)
        made = [
            {"scale": scale, "stage": stage, "rule": rule}
            | _summed(members, total, around, goal if (stage, rule) == (ALL, ALL) else None)
            for (stage, rule), members in groups.items()
        ]
        # The total first, then the stages by their time, each followed by its rules.
        by_stage = {row["stage"]: -row["wall_s"] for row in made if row["rule"] == ALL}
        by_stage[ALL] = -math.inf
        made.sort(key=lambda r: (by_stage[r["stage"]], r["stage"], r["rule"] != ALL, -r["wall_s"]))
        rows += made
    return rows


def scheduling_s(steps: Iterable[dict]) -> float:
    """Seconds that Snakemake adds around a job: an empty job less its process, median of repeats.

    Raises `BadProvenance` where they were not timed.
    """
    times: dict[str, list[float]] = {}
    for row in steps:
        if row["status"] == "ok":
            times.setdefault(row["step"], []).append(row["seconds"])
    try:
        return max(0.0, median(times["empty job"]) - median(times["its process"]))
    except KeyError as error:
        raise BadProvenance(
            f"the table workflow_steps has no row {error}\nmake it again: rule time_workflow"
        ) from None


def _summed(jobs: list[dict], total: float, around: float, goal: float | None) -> dict:
    wall, scheduling = sum(job["wall_s"] for job in jobs), around * len(jobs)
    parts = {key: _total(jobs, key) for key in PARTS}
    known = None not in (parts["start_s"], parts["exit_s"])
    overhead = sum(parts[key] or 0.0 for key in OVERHEAD) + scheduling
    return {
        "jobs": len(jobs),
        "wall_s": wall,
        "share": wall / total,
        **parts,
        "scheduling_s": scheduling,
        "overhead_share": overhead / (wall + scheduling) if known else None,
        "goal": goal,
        "cores": os.cpu_count() or 1,
        "evidence": "measured",
    }


def _total(jobs: list[dict], key: str) -> float | None:
    values = [job[key] for job in jobs]
    return None if None in values else sum(values)
