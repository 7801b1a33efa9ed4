"""What earlier jobs took, and what that says about the next run of a job.

Records come from this folder (Snakemake's benchmarks under results/<scale>/benchmarks and the table
results/workflow_jobs.csv) and from the committed tables docs/measured/*/workflow_jobs.csv, always
of one scale. `ember estimate` and the Snakefile (`runtime=`) predict from the same `History`.

Only the standard library is imported, because every dry run reads this.
"""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = "here"
# Fewer ratios say nothing about how much runs of one job differ.
FEWEST_RATIOS = 5


@dataclass(frozen=True)
class Record:
    """One finished job.

    gpu: whether it was given an accelerator, None where the record does not say.
    source: `HERE` for this folder's last run, else the table it stands in.
    own: of this folder. machine: "" where the record does not say. whole: the time includes the
    start of the process, which a job's own clock does not see.
    """

    job: str
    rule: str
    wall_s: float
    source: str
    own: bool
    gpu: bool | None = None
    max_rss_mb: float | None = None
    output_bytes: int | None = None
    machine: str = ""
    whole: bool = True


@dataclass(frozen=True)
class History:
    """Records of one scale; `notes` says what was left out and why.

    spread: p10 and p90 of (other record / predicted seconds) over the jobs with several records,
    1 included; None where there are fewer than `FEWEST_RATIOS` of these ratios.
    """

    scale: str
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Prediction:
    """Seconds of one job. basis: "same job", or "same rule" for other wildcards, not scaled.

    records: those the seconds are the median of; low and high take in every record of the job (for
    "same rule": of the rule), or, where there is only one, the spread of the other jobs' records.
    """

    seconds: float
    low: float
    high: float
    basis: str
    records: tuple[Record, ...]
    spread_from: str


def read_history(
    scale: str, results: Path, measured: Path | None = None, rules: Iterable[str] = ()
) -> History:
    """The records of `scale` in a results folder and under `measured` (docs/measured).

    rules: names of the workflow's rules, to know the rule of a benchmark that does not name it.
    What cannot be read is left out and noted.
    """
    notes: list[str] = []
    own = _table(results / "workflow_jobs.csv", scale, True, notes)
    records = _benchmarks(results / scale / "benchmarks", own, tuple(rules), notes) + own
    for path in sorted(measured.glob("*/workflow_jobs.csv")) if measured else ():
        records += _table(path, scale, False, notes)
    return with_spread(History(scale, tuple(records), tuple(notes)))


def with_spread(history: History) -> History:
    """The history with the spread of its jobs' records."""
    groups = defaultdict(list)
    for record in history.records:
        groups[record.job, bool(record.gpu)].append(record)
    ratios = []
    for group in groups.values():
        nearest = _nearest(group)
        seconds = quantile([record.wall_s for record in nearest], 0.5)
        others = [record for record in group if record not in nearest] or nearest
        if len(group) > 1 and seconds > 0:
            ratios += [record.wall_s / seconds for record in others]
    if len(ratios) < FEWEST_RATIOS:
        return replace(history, spread=None)
    low, high = quantile(ratios, 0.1), quantile(ratios, 0.9)
    return replace(history, spread=(min(1.0, low), max(1.0, high)))


def predict(history: History, job: str, rule: str, gpu: bool | None = None) -> Prediction | None:
    """Seconds of `job` by earlier runs on the same kind of device, None without a record.

    The same job before other wildcards of its rule; this folder's last run before its table before
    committed tables. gpu: whether the job gets an accelerator; None if that is not known, then
    records with one are preferred.
    """
    for basis, key, name in (("same job", "job", job), ("same rule", "rule", rule)):
        found = _of_device([r for r in history.records if getattr(r, key) == name], gpu)
        if not found:
            continue
        nearest = _nearest(found)
        seconds = quantile([record.wall_s for record in nearest], 0.5)
        low, high, how = _interval(seconds, found, history.spread)
        return Prediction(seconds, low, high, basis, tuple(nearest), how)
    return None


def runtime_minutes(
    prediction: Prediction | None, limit: int, attempt: int, factor: float, minimum: int
) -> int:
    """Minutes to ask a cluster for: the prediction's upper end times `factor`, at least `minimum`.

    Never more than `limit`, doubled with every attempt. Without a prediction, and from the third
    attempt on, when the prediction has failed twice, `limit` itself grows.
    """
    doubled = 2 ** (attempt - 1)
    if prediction is None or attempt > 2:
        return limit * doubled
    return min(limit, max(minimum, math.ceil(prediction.high * factor / 60))) * doubled


def rule_names(root: Path) -> list[str]:
    """Names of the rules in the Snakefile and in rules/ under `root`."""
    files = [root / "Snakefile", *sorted((root / "rules").rglob("*.smk"))]
    texts = [file.read_text() for file in files if file.is_file()]
    return [
        name
        for text in texts
        for name in re.findall(
            r"^(?:rule|checkpoint|use rule \w+ as) (\w+)(?::| with:)", text, re.M
        )
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile `share` (0 to 1) of `values`, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# Choosing


def _of_device(records: list[Record], gpu: bool | None) -> list[Record]:
    if gpu is None:
        with_gpu = [record for record in records if record.gpu]
        return with_gpu or records
    return [record for record in records if record.gpu in (gpu, None)]


def _nearest(records: list[Record]) -> list[Record]:
    """The last run here, else this folder's table, else the committed tables."""
    last = [record for record in records if record.source == HERE]
    return last or [record for record in records if record.own] or records


def _interval(
    seconds: float, found: list[Record], spread: tuple[float, float] | None
) -> tuple[float, float, str]:
    if len(found) > 1:
        times = [record.wall_s for record in found]
        return min(times), max(times), "its records"
    if spread is None:
        return seconds, seconds, "none"
    return seconds * spread[0], seconds * spread[1], "other jobs"


# Reading


def _benchmarks(
    folder: Path, own: list[Record], rules: Sequence[str], notes: list[str]
) -> list[Record]:
    """The last run's records; what this folder's table says of the same run is taken over."""
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            found = [_benchmark(path.stem, line, rules) for line in lines]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            found = []
        if not found:
            notes.append(f"{path} is not a benchmark: left out")
        records += found
    for place, record in enumerate(records):
        same = [r for r in own if r.job == record.job and math.isclose(r.wall_s, record.wall_s)]
        if same:
            records[place] = replace(same[0], source=HERE)
            own.remove(same[0])
    # The job's own clock starts after the interpreter: beside a benchmark it says nothing new.
    timed = {record.job for record in records}
    own[:] = [record for record in own if record.whole or record.job not in timed]
    return records


def _benchmark(job: str, line: Mapping, rules: Sequence[str]) -> Record:
    # Extended benchmarks (`benchmark-extended` in the profile) name rule and resources too.
    resources = line.get("resources")
    rule = line.get("rule_name") or _rule_of(job, rules)
    gpu = bool(resources.get("gpu")) if isinstance(resources, dict) else None
    return Record(
        job, str(rule), _seconds(line["s"]), HERE, True, gpu, _number(line.get("max_rss"))
    )


def _rule_of(job: str, rules: Sequence[str]) -> str:
    """The rule whose name and wildcard values the job's name is: the longest that fits."""
    fits = [rule for rule in rules if job == rule or job.startswith(f"{rule}_")]
    return max(fits, key=len, default=job)


def _table(path: Path, scale: str, own: bool, notes: list[str]) -> list[Record]:
    """Rows of WORKFLOW_JOBS (`ember.studies.workflow.cost.tables`) at `scale`, from their CSV."""
    records, bad = [], 0
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{path} cannot be read ({error}): left out")
        return []
    for row in rows:
        # A header carries the unit where the name does not: "max_rss_mb (MB)".
        cells = {(key or "").split(" ")[0]: value for key, value in row.items()}
        try:
            if cells["scale"] == scale:
                records.append(_row(cells, path, own))
        except (KeyError, ValueError, TypeError):
            bad += 1
    if bad:
        notes.append(f"{path}: {bad} of {len(rows)} rows do not parse: left out")
    return records


def _row(cells: Mapping, path: Path, own: bool) -> Record:
    if not (cells["job"] and cells["rule"] and cells["device"]):
        raise ValueError("incomplete")
    size = _number(cells.get("output_bytes"))
    return Record(
        job=cells["job"],
        rule=cells["rule"],
        wall_s=_seconds(cells["wall_s"]),
        source=f"{path.parent.name}/{path.name}",
        own=own,
        gpu=cells["device"] != "cpu",
        max_rss_mb=_number(cells.get("max_rss_mb")),
        output_bytes=None if size is None else int(size),
        machine=cells.get("machine") or "",
        whole=cells.get("wall_from") != "job",
    )


def _seconds(value: object) -> float:
    seconds = _number(value)
    if seconds is None or seconds < 0:
        raise ValueError(f"not a duration: {value!r}")
    return seconds


def _number(value: object) -> float | None:
    """A finite number, None for what is missing ("", "NA", NaN)."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
