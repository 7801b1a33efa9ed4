"""What a run will take before it is submitted: the plan's jobs, each at the median of earlier ones.

`estimate` asks Snakemake for the jobs, `ember.operations.history` for what each took before, and
plays the schedule: jobs start as soon as their inputs are there and cores, `timing`, `gpu` and the
number of jobs at a time allow it. A job without a record counts nothing and is named; a second
figure takes such jobs at their limits.
"""

import heapq
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.measure.overhead import read_record
from ember.operations.history import HERE, History, predict, read_history
from ember.operations.plan import PlannedJob, Settings, planned_jobs, profile_settings
from ember.records.provenance import describe_machine, size_bytes, source_root


def estimate(
    targets: Sequence[str] = ("all",),
    settings: Settings | None = None,
    *,
    every: bool = False,
    cores: int | None = None,
    jobs: int | None = None,
    folder: Path | str = ".",
) -> dict:
    """The estimate for `targets` in `folder` (see `planned_jobs`) as plain data, named with units.

    cores, jobs: in place of the profile's. Raises `BadPlan`.
    """
    settings, folder = settings or Settings(), Path(folder)
    pools = profile_pools(profile_settings(settings.profile), cores, jobs)
    plan = planned_jobs(targets, settings, every=every, folder=folder)
    # results/<scale>/benchmarks/<job>.jsonl
    scale = next((Path(job.benchmark).parts[-3] for job in plan if job.benchmark), "")
    history = History()
    if plan:
        history = read_history(scale, folder / "results", source_root() / "docs" / "measured")
    about = {"targets": list(targets), "profile": settings.profile, "scale": scale}
    return about | estimate_plan(plan, history, pools, scale, folder)


def profile_pools(
    settings: Mapping, cores: int | None = None, jobs: int | None = None
) -> dict[str, int]:
    """What limits jobs side by side under a profile: cores, jobs and its named resources."""
    given = settings.get("resources") or ()
    if not isinstance(given, Mapping):
        given = dict(str(entry).partition("=")[::2] for entry in given)
    pools = {name: int(amount) for name, amount in given.items() if str(amount).isdigit()}
    remote = settings.get("executor") not in (None, "local")
    if not remote or cores:  # on a cluster every job has cores of its own
        own = settings.get("cores")
        pools["cores"] = cores or (own if isinstance(own, int) else len(os.sched_getaffinity(0)))
    limit = jobs or (settings.get("jobs") if remote else None)
    return pools | ({"jobs": limit} if isinstance(limit, int) else {})


def estimate_plan(
    plan: Sequence[PlannedJob],
    history: History,
    pools: Mapping[str, int],
    scale: str = "",
    folder: Path = Path(),
) -> dict:
    """The estimate for jobs that are planned already.

    wall_s, the hours and the memory are of the jobs that have a record; wall_with_limits_s takes
    the others at their `runtime`. rests_on counts jobs by what their seconds rest on. unscaled: by
    other jobs of their rule. unsized: the size of their products is not known. changed: settings or
    code are known to have changed since their record.
    """
    known = [predict(history, job.name, job.rule, bool(job.asks("gpu"))) for job in plan]
    seconds = [found.seconds if found else 0.0 for found in known]
    limits = [0.0 if found else 60.0 * job.asks("runtime") for job, found in _pairs(plan, known)]
    rss = [
        max((r.max_rss_mb or 0.0 for r in found.records), default=0.0) if found else 0.0
        for found in known
    ]
    starts = schedule(plan, seconds, pools)
    spans = [(start, start + s, size) for start, s, size in zip(starts, seconds, rss, strict=True)]
    at_once = [sum(size for s, e, size in spans if s <= now < e) for now in starts]
    records = [read_record(scale, job.name, folder) for job in plan]
    sizes = [_sizes(*each, history, folder) for each in _pairs(plan, records)]
    results = folder.resolve() / "results"
    free_at = next(path for path in (results, *results.parents) if path.exists())
    return {
        "pools": dict(pools),
        "jobs": dict(Counter(job.rule for job in plan)),
        "wall_s": max((end for _, end, _ in spans), default=0.0),
        "wall_with_limits_s": _makespan(plan, list(map(sum, _pairs(seconds, limits))), pools),
        "cpu_hours": sum(job.threads * s for job, s in _pairs(plan, seconds)) / 3600,
        "gpu_hours": sum(job.asks("gpu") * s for job, s in _pairs(plan, seconds)) / 3600,
        "peak_rss_mb": max([*at_once, *rss], default=0.0),
        "largest_rss_mb": max(rss, default=0.0),
        "largest_rss_job": plan[rss.index(max(rss))].name if any(rss) else "",
        "write_bytes": sum(size or 0 for size, _ in sizes),
        "replace_bytes": sum(there for _, there in sizes),
        "unsized": [job.name for job, (size, _) in _pairs(plan, sizes) if size is None],
        "free_bytes": shutil.disk_usage(free_at).free,
        "free_at": str(free_at),
        "rests_on": dict(Counter(_source(*each) for each in _pairs(known, records) if each[0])),
        "unscaled": [
            job.name for job, found in _pairs(plan, known) if found and not found.same_job
        ],
        "no_record": [job.name for job, found in _pairs(plan, known) if not found],
        "changed": [
            job.name
            for job, found in _pairs(plan, known)
            if found and "Params have changed" in job.reason
        ],
        "notes": list(history.notes),
    }


def _pairs(first: Sequence, second: Sequence) -> list[tuple]:
    return list(zip(first, second, strict=True))


# Scheduling


def schedule(
    plan: Sequence[PlannedJob], seconds: Sequence[float], pools: Mapping[str, int]
) -> list[float]:
    """Start of every job under list scheduling: of the jobs that are ready, the first that fit.

    A job that needs more of a pool than there is gets all of it, as Snakemake does with threads.
    Pools that are not named have no limit.
    """
    needs = [
        {
            p: min(size, {"cores": job.threads, "jobs": 1}.get(p, job.asks(p)))
            for p, size in pools.items()
        }
        for job in plan
    ]
    makers = {path: place for place, job in enumerate(plan) for path in job.outputs}
    waits = [{makers[path] for path in job.inputs if path in makers} for job in plan]
    free, running, starts, now = dict(pools), [], {}, 0.0
    while len(starts) < len(plan) or running:
        for place, need in enumerate(needs):
            fits = all(free[pool] >= amount for pool, amount in need.items())
            if place not in starts and not waits[place] and fits:
                free = {pool: free[pool] - need[pool] for pool in free}
                starts[place] = now
                heapq.heappush(running, (now + seconds[place], place))
        now, done = heapq.heappop(running)
        free = {pool: free[pool] + needs[done][pool] for pool in free}
        for before in waits:
            before.discard(done)
    return [starts[place] for place in range(len(plan))]


def _makespan(plan, seconds, pools) -> float:
    starts = schedule(plan, seconds, pools)
    return max((start + s for start, s in _pairs(starts, seconds)), default=0.0)


# What jobs wrote, and where


def _sizes(job: PlannedJob, record: dict, history: History, folder: Path) -> tuple[int | None, int]:
    """Bytes to write (None: unknown) and bytes there now, which they replace."""
    there = [size_bytes(folder / path) for path in job.outputs]
    if all((folder / path).exists() for path in job.outputs):
        return sum(there), sum(there)
    if record.get("products"):
        return sum(product.get("bytes", 0) for product in record["products"]), sum(there)
    for key, name in (("job", job.name), ("rule", job.rule)):
        known = [r.output_bytes for r in history.records if getattr(r, key) == name]
        if sizes := [size for size in known if size is not None]:
            return max(sizes), sum(there)
    return None, sum(there)


def _source(found, record: dict) -> str:
    source = found.records[0].source
    machines = {r.machine for r in found.records if r.machine}
    if source == HERE and found.same_job and record.get("hardware"):
        machines = {describe_machine(record["hardware"])}
    return f"{source} ({'; '.join(sorted(machines)) or 'machine not recorded'})"


# As text


def format_estimate(found: Mapping) -> str:
    """The estimate in words."""
    limits = ", ".join(f"{name} {amount}" for name, amount in found["pools"].items()) or "no limits"
    head = f"{' '.join(found['targets'])}: profile {found['profile']}"
    if not found["jobs"]:
        return f"{head}\nNothing to do: everything is there (--all estimates it anew)."
    width = max(map(len, found["jobs"]))
    parts = [
        [f"{head}, scale {found['scale']}, at a time: {limits}"],
        [_jobs(sum(found["jobs"].values())) + " to run"]
        + [f"  {rule:<{width}}  {count}" for rule, count in sorted(found["jobs"].items())],
        [f"{name:<14} {text}" for name, text in _figures(found)],
        _basis(found),
        _warnings(found),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _figures(found: Mapping) -> list[tuple[str, str]]:
    rows, missing = [], len(found["no_record"])
    if found["rests_on"]:
        rows += [
            ("wall time", duration(found["wall_s"])),
            ("CPU-hours", f"{found['cpu_hours']:.3g} (threads x time)"),
            ("GPU-hours", f"{found['gpu_hours']:.3g}"),
        ]
    if found["largest_rss_job"]:
        largest = f"largest job {found['largest_rss_mb']:.0f} MB ({found['largest_rss_job']})"
        rows += [("peak memory", f"{found['peak_rss_mb']:.0f} MB at once, {largest}")]
    if missing:
        wall = duration(found["wall_with_limits_s"])
        at = f"{_jobs(missing)} without a record at the limit of the rule"
        rows += [("with limits", f"{wall}, with {at}")]
    disk = f"{size(found['write_bytes'])} to write"
    if found["unsized"]:
        disk += f", and {_jobs(len(found['unsized']))} of unknown size"
    if found["replace_bytes"]:
        disk += f"; replaces {size(found['replace_bytes'])}"
    return [*rows, ("disk", f"{disk}; {size(found['free_bytes'])} free at {found['free_at']}")]


def _basis(found: Mapping) -> list[str]:
    lines = [f"{_jobs(count)} by {what}" for what, count in found["rests_on"].items()]
    said = {
        "unscaled": "of these by other jobs of the same rule, not scaled",
        "no_record": "without a record, in the figures only under 'with limits'",
        "changed": "settings or code changed since the record, at least of",
    }
    return lines + [f"{text}: {_names(found[key])}" for key, text in said.items() if found[key]]


def _warnings(found: Mapping) -> list[str]:
    lines, need = [], found["write_bytes"] - found["replace_bytes"]
    if need > found["free_bytes"]:
        lines.append(
            f"warning: {size(need)} more disk is needed than what is replaced, and "
            f"{size(found['free_bytes'])} are free at {found['free_at']}: free space, or run the "
            "workflow elsewhere with --directory"
        )
    if "cores" in found["pools"]:
        lines.append("Snakemake's own start and the gaps between jobs are not in it.")
    else:
        lines.append("Waiting in the cluster's queue and starting jobs there are not in it.")
    return lines + [f"note: {note}" for note in found["notes"]]


def duration(seconds: float) -> str:
    """Seconds for reading: 8.4 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for reading, in powers of ten."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
