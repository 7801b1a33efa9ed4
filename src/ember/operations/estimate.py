"""What a run will take before it is submitted: the plan's jobs, priced by earlier ones.

`estimate` asks Snakemake for the jobs, `ember.operations.history` for what each took before, and
plays the schedule: jobs start as soon as their inputs are there and cores, `timing`, `gpu` and the
number of jobs at a time allow it. A job without a record counts nothing; a second figure takes
such jobs at their limits.
"""

import heapq
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ember.operations.history import (
    HERE,
    History,
    Prediction,
    predict,
    read_history,
    rule_names,
)
from ember.operations.plan import PlannedJob, planned_jobs
from ember.records.errors import EmberError
from ember.records.provenance import describe_machine, provenance_of, source_root


class BadEstimate(EmberError):
    """The estimate cannot be made; the message says what to give instead."""


# Scheduling


@dataclass(frozen=True)
class Task:
    """Work of `seconds` that starts after the tasks `after` (places in the list of tasks).

    needs: how much of each pool it holds while it runs.
    """

    seconds: float
    after: frozenset[int] = frozenset()
    needs: Mapping[str, int] = field(default_factory=dict)


def schedule(tasks: Sequence[Task], pools: Mapping[str, int]) -> list[float]:
    """Start of every task under list scheduling: of the tasks that are ready, the first that fit.

    A task that needs more of a pool than there is gets all of it, as Snakemake does with threads.
    Pools that are not named have no limit. Raises `BadEstimate` for tasks that wait for each other.
    """
    needs = [_needs(task, pools) for task in tasks]
    followers, waiting = _graph(tasks)
    ready = [place for place, count in enumerate(waiting) if count == 0]
    shared = [pool for pool in pools if all(pool in need for need in needs)]
    free, running, starts, now = dict(pools), [], [math.nan] * len(tasks), 0.0
    while ready or running:
        for place in sorted(ready):
            if any(free[pool] == 0 for pool in shared):
                break
            if all(free[pool] >= amount for pool, amount in needs[place].items()):
                for pool, amount in needs[place].items():
                    free[pool] -= amount
                ready.remove(place)
                starts[place] = now
                heapq.heappush(running, (now + tasks[place].seconds, place))
        now = running[0][0]
        while running and running[0][0] <= now:
            _, done = heapq.heappop(running)
            for pool, amount in needs[done].items():
                free[pool] += amount
            for follower in followers[done]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    ready.append(follower)
    if any(math.isnan(start) for start in starts):
        raise BadEstimate("the jobs wait for each other\nask for targets of an acyclic workflow")
    return starts


def makespan(tasks: Sequence[Task], pools: Mapping[str, int]) -> float:
    """Seconds from the first start to the last end."""
    starts = schedule(tasks, pools)
    return max((s + t.seconds for s, t in zip(starts, tasks, strict=True)), default=0.0)


def critical_path(tasks: Sequence[Task]) -> float:
    """Seconds of the longest chain of tasks that wait for each other."""
    return makespan([Task(task.seconds, task.after) for task in tasks], {})


def lower_bound(tasks: Sequence[Task], pools: Mapping[str, int]) -> float:
    """Seconds that no schedule can beat: the critical path, or a pool that is always full."""
    needs = [_needs(task, pools) for task in tasks]
    full = [
        sum(t.seconds * n.get(pool, 0) for t, n in zip(tasks, needs, strict=True)) / size
        for pool, size in pools.items()
    ]
    return max([critical_path(tasks), *full])


def _needs(task: Task, pools: Mapping[str, int]) -> dict[str, int]:
    return {
        pool: min(amount, pools[pool])
        for pool, amount in task.needs.items()
        if amount > 0 and pool in pools
    }


def _graph(tasks: Sequence[Task]) -> tuple[list[list[int]], list[int]]:
    followers: list[list[int]] = [[] for _ in tasks]
    for place, task in enumerate(tasks):
        for before in task.after:
            followers[before].append(place)
    return followers, [len(task.after) for task in tasks]


# The estimate


@dataclass(frozen=True)
class Estimate:
    """What a run of the planned jobs will take. Seconds, hours, bytes and MB as named.

    wall_s, its interval, the hours and the memory are of the jobs that have a record;
    wall_with_limits_s takes the others at their `runtime`. rests_on counts jobs by what their
    seconds rest on. unsized: jobs whose products have no known size. changed: jobs whose settings
    or code are known to have changed since their record.
    """

    targets: tuple[str, ...]
    profile: str
    scale: str
    pools: dict[str, int]
    jobs: dict[str, int]
    wall_s: float = 0.0
    wall_low_s: float = 0.0
    wall_high_s: float = 0.0
    critical_path_s: float = 0.0
    lower_bound_s: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    write_bytes: int = 0
    replace_bytes: int = 0
    unsized: tuple[str, ...] = ()
    free_bytes: int = 0
    free_at: str = ""
    peak_rss_mb: float = 0.0
    largest_rss_mb: float = 0.0
    largest_rss_job: str = ""
    rests_on: dict[str, int] = field(default_factory=dict)
    unscaled: tuple[str, ...] = ()
    interval_from: dict[str, int] = field(default_factory=dict)
    no_record: tuple[str, ...] = ()
    no_record_limit_s: float = 0.0
    wall_with_limits_s: float = 0.0
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def enough_disk(self) -> bool:
        """Whether what is to be written fits, what it replaces being removed first."""
        return self.write_bytes - self.replace_bytes <= self.free_bytes

    def as_dict(self) -> dict:
        """Plain data, for JSON."""
        return asdict(self) | {"enough_disk": self.enough_disk}


def estimate(
    targets: Sequence[str] = ("all",),
    *,
    profile: str = "local",
    config: Sequence[str] = (),
    every: bool = False,
    cores: int | None = None,
    jobs: int | None = None,
    folder: Path | str = ".",
) -> Estimate:
    """The estimate for `targets` in `folder` (see `planned_jobs`).

    cores, jobs: in place of the profile's. Raises `BadEstimate` and `BadPlan`.
    """
    root, folder = source_root(), Path(folder)
    pools = profile_pools(root / profile / "config.yaml", cores, jobs)
    plan = planned_jobs(targets, profile=profile, config=config, every=every, folder=folder)
    scale = _scale(plan)
    history = History("")
    if plan:
        history = read_history(
            scale, folder / "results", root / "docs" / "measured", rule_names(root)
        )
    return estimate_plan(plan, history, pools, tuple(targets), profile, folder)


def profile_pools(file: Path, cores: int | None = None, jobs: int | None = None) -> dict[str, int]:
    """What limits jobs side by side under a profile: cores, jobs and its named resources.

    Raises `BadEstimate` for a profile that is not there.
    """
    import yaml

    if not file.is_file():
        raise BadEstimate(f"{file.parent} is no profile (no config.yaml)\nchoose local or slurm")
    settings = yaml.safe_load(file.read_text()) or {}
    pools = {}
    given = settings.get("resources") or ()
    if not isinstance(given, Mapping):
        given = dict(str(entry).partition("=")[::2] for entry in given)
    for name, amount in given.items():
        if str(amount).isdigit():
            pools[name] = int(amount)
    remote = settings.get("executor") not in (None, "local")
    # On a cluster every job has cores of its own.
    if not remote or cores:
        pools["cores"] = cores or _profile_cores(settings)
    limit = jobs or (settings.get("jobs") if remote else None)
    if isinstance(limit, int):
        pools["jobs"] = limit
    return pools


def estimate_plan(
    plan: Sequence[PlannedJob],
    history: History,
    pools: Mapping[str, int],
    targets: tuple[str, ...] = (),
    profile: str = "local",
    folder: Path = Path(),
) -> Estimate:
    """The estimate for jobs that are planned already."""
    free_at = _existing(folder / "results")
    known = {
        "targets": tuple(targets),
        "profile": profile,
        "scale": history.scale,
        "pools": dict(pools),
        "jobs": dict(Counter(job.rule for job in plan)),
        "free_bytes": shutil.disk_usage(free_at).free,
        "free_at": str(free_at.resolve()),
        "notes": history.notes,
    }
    if not plan:
        return Estimate(**known)
    predictions = [
        predict(history, job.name, job.rule, bool(job.resources.get("gpu"))) for job in plan
    ]
    return Estimate(
        **known,
        **_times(plan, predictions, pools),
        **_memory(plan, predictions, pools),
        **_disk(plan, history, folder),
        **_basis(plan, predictions, folder),
    )


def _times(plan, predictions, pools) -> dict:
    tasks = _tasks(plan, [p.seconds if p else 0.0 for p in predictions])
    limits = [0.0 if p else _limit_s(job) for job, p in zip(plan, predictions, strict=True)]
    both = [limit + task.seconds for limit, task in zip(limits, tasks, strict=True)]
    wall = makespan(tasks, pools)
    # A list schedule can get shorter when its jobs get longer, which is no end of an interval.
    low = makespan(_tasks(plan, [p.low if p else 0.0 for p in predictions]), pools)
    high = makespan(_tasks(plan, [p.high if p else 0.0 for p in predictions]), pools)
    gpu = [job.resources.get("gpu") or 0 for job in plan]
    return {
        "wall_s": wall,
        "wall_low_s": min(low, wall),
        "wall_high_s": max(high, wall),
        "critical_path_s": critical_path(tasks),
        "lower_bound_s": lower_bound(tasks, pools),
        "cpu_hours": sum(t.seconds * t.needs["cores"] for t in tasks) / 3600,
        "gpu_hours": sum(t.seconds * n for t, n in zip(tasks, gpu, strict=True)) / 3600,
        "no_record_limit_s": sum(limits),
        "wall_with_limits_s": max(makespan(_tasks(plan, both), pools), wall),
    }


def _tasks(plan: Sequence[PlannedJob], seconds: Sequence[float]) -> list[Task]:
    makers = {path: place for place, job in enumerate(plan) for path in job.outputs}
    tasks = []
    for job, duration in zip(plan, seconds, strict=True):
        after = frozenset(makers[path] for path in job.inputs if path in makers)
        counted = {name: n for name, n in job.resources.items() if isinstance(n, int)}
        tasks.append(Task(duration, after, counted | {"cores": job.threads, "jobs": 1}))
    return tasks


def _limit_s(job: PlannedJob) -> float:
    # Without a record, `runtime` is the configured limit.
    minutes = job.resources.get("runtime")
    return 60.0 * minutes if isinstance(minutes, int) else 0.0


def _memory(plan, predictions, pools) -> dict:
    """The largest job, and the jobs that the schedule has side by side."""
    sizes = [
        max((r.max_rss_mb or 0.0 for r in p.records), default=0.0) if p else 0.0
        for p in predictions
    ]
    tasks = _tasks(plan, [p.seconds if p else 0.0 for p in predictions])
    starts = schedule(tasks, pools)
    ends = [start + task.seconds for start, task in zip(starts, tasks, strict=True)]
    side_by_side = [
        sum(size for s, e, size in zip(starts, ends, sizes, strict=True) if s <= now < e)
        for now in starts
    ]
    largest = max(range(len(plan)), key=sizes.__getitem__)
    return {
        "peak_rss_mb": max([*side_by_side, sizes[largest]]),
        "largest_rss_mb": sizes[largest],
        "largest_rss_job": plan[largest].name if sizes[largest] else "",
    }


def _disk(plan: Sequence[PlannedJob], history: History, folder: Path) -> dict:
    written, replaced, unsized = 0, 0, []
    for job in plan:
        there = [_size(folder / path) for path in job.outputs]
        replaced += sum(size or 0 for size in there)
        if None not in there:
            written += sum(there)
            continue
        size = _recorded_size(history, job)
        if size is None:
            unsized.append(job.name)
        written += size or 0
    return {"write_bytes": written, "replace_bytes": replaced, "unsized": tuple(unsized)}


def _recorded_size(history: History, job: PlannedJob) -> int | None:
    """The largest recorded size of the job's products, else of its rule's."""
    for key, name in (("job", job.name), ("rule", job.rule)):
        sizes = [r.output_bytes for r in history.records if getattr(r, key) == name]
        known = [size for size in sizes if size is not None]
        if known:
            return max(known)
    return None


def _size(path: Path) -> int | None:
    """Bytes of a file or folder, None where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else None


def _basis(plan, predictions, folder: Path) -> dict:
    pairs = list(zip(plan, predictions, strict=True))
    known = [(job, p) for job, p in pairs if p]
    return {
        "rests_on": dict(Counter(_rests_on(job, p, folder) for job, p in known)),
        "unscaled": tuple(job.name for job, p in known if p.basis == "same rule"),
        "interval_from": dict(Counter(p.spread_from for _, p in known)),
        "no_record": tuple(job.name for job, p in pairs if p is None),
        "changed": tuple(job.name for job, p in known if "Params have changed" in job.reason),
    }


def _rests_on(job: PlannedJob, prediction: Prediction, folder: Path) -> str:
    record = prediction.records[0]
    what = "the last run here" if record.source == HERE else record.source
    machines = {r.machine for r in prediction.records if r.machine}
    if not machines and record.source == HERE and prediction.basis == "same job":
        machines = {_machine(job, folder)}
    return f"{what} ({'; '.join(sorted(machines)) or 'machine not recorded'})"


def _machine(job: PlannedJob, folder: Path) -> str:
    """The machine that made the job's products, by their provenance; "" if they do not say."""
    for path in job.outputs:
        try:
            made = provenance_of(folder / path)
        except (EmberError, OSError):
            continue
        if made and made.get("rule") == job.rule:
            return describe_machine(made.get("hardware") or {})
    return ""


def _scale(plan: Sequence[PlannedJob]) -> str:
    # results/<scale>/benchmarks/<job>.jsonl
    return next((Path(job.benchmark).parts[-3] for job in plan if job.benchmark), "")


def _profile_cores(settings: Mapping) -> int:
    cores = settings.get("cores")
    return cores if isinstance(cores, int) else len(os.sched_getaffinity(0))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


# As text


def format_estimate(found: Estimate) -> str:
    """The estimate in words."""
    limits = ", ".join(f"{name} {amount}" for name, amount in found.pools.items()) or "no limits"
    head = f"{' '.join(found.targets)}: profile {found.profile}"
    if not found.jobs:
        return f"{head}\nNothing to do: everything is there (--all estimates it anew)."
    parts = [
        [f"{head}, scale {found.scale}, at a time: {limits}"],
        _jobs_lines(found),
        _figures(found),
        _basis_lines(found),
        _warnings(found),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _jobs_lines(found: Estimate) -> list[str]:
    width = max(map(len, found.jobs))
    rows = [f"  {rule:<{width}}  {count}" for rule, count in sorted(found.jobs.items())]
    return [f"{_plural(sum(found.jobs.values()), 'job')} to run", *rows]


def _figures(found: Estimate) -> list[str]:
    rows = []
    if sum(found.rests_on.values()):
        wall = duration(found.wall_s)
        if set(found.interval_from) - {"none"}:
            wall += f"  [{duration(found.wall_low_s)} to {duration(found.wall_high_s)}]"
        rows += [
            ("wall time", wall),
            ("critical path", f"{duration(found.critical_path_s)}, whatever runs side by side"),
            ("lower bound", f"{duration(found.lower_bound_s)}, whatever the order"),
            ("CPU-hours", f"{found.cpu_hours:.3g} (threads x time)"),
            ("GPU-hours", f"{found.gpu_hours:.3g}"),
        ]
    if found.largest_rss_mb:
        largest = f"largest job {found.largest_rss_mb:.0f} MB ({found.largest_rss_job})"
        rows.append(("peak memory", f"{found.peak_rss_mb:.0f} MB at once, {largest}"))
    if found.no_record:
        rows.append(
            (
                "with limits",
                f"{duration(found.wall_with_limits_s)}, with {_plural(len(found.no_record), 'job')}"
                f" without a record at {duration(found.no_record_limit_s)} in all",
            )
        )
    rows.append(("disk", _disk_text(found)))
    return [f"{name:<14} {text}" for name, text in rows]


def _disk_text(found: Estimate) -> str:
    text = f"{size(found.write_bytes)} to write"
    if found.unsized:
        text += f", and {_plural(len(found.unsized), 'job')} of unknown size"
    if found.replace_bytes:
        text += f"; replaces {size(found.replace_bytes)}"
    return f"{text}; {size(found.free_bytes)} free at {found.free_at}"


def _basis_lines(found: Estimate) -> list[str]:
    lines = [f"{_plural(count, 'job')} by {what}" for what, count in found.rests_on.items()]
    if found.unscaled:
        lines.append(
            f"of these by other jobs of the same rule, not scaled: {_names(found.unscaled)}"
        )
    if found.no_record:
        lines.append(
            f"{_plural(len(found.no_record), 'job')} without a record, in the figures only "
            f"under 'with limits' (their runtime limit): {_names(found.no_record)}"
        )
    if found.changed:
        lines.append(
            f"settings or code changed since the record, at least of: {_names(found.changed)}"
        )
    return lines + _interval_lines(found)


def _interval_lines(found: Estimate) -> list[str]:
    meaning = {
        "its records": "smallest to largest of several records",
        "other jobs": "one record, times p10 and p90 of the ratios between other jobs' records",
        "none": "one record, and nothing to tell a spread by",
    }
    known = [
        f"{_plural(found.interval_from[how], 'job')}: {text}"
        for how, text in meaning.items()
        if found.interval_from.get(how)
    ]
    if not known:
        return []
    how = "every job at its low or high end" if set(found.interval_from) - {"none"} else "none"
    return [f"interval: {how} ({'; '.join(known)})"]


def _warnings(found: Estimate) -> list[str]:
    lines = []
    if not found.enough_disk:
        need = found.write_bytes - found.replace_bytes
        lines.append(
            f"warning: {size(need)} more disk is needed than what is replaced, and "
            f"{size(found.free_bytes)} are free at {found.free_at}: free space, or run the "
            "workflow elsewhere with --directory"
        )
    if found.profile != "local":
        lines.append("Waiting in the cluster's queue and starting jobs there are not in it.")
    else:
        lines.append("Snakemake's own start and the gaps between jobs are not in it.")
    return lines + [f"note: {note}" for note in found.notes]


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


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
