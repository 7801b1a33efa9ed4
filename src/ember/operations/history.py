"""What earlier jobs took, and what that says about the next run of a job.

Records come from this folder (Snakemake's benchmarks under results/<scale>/benchmarks) and from the
committed tables docs/measured/*/workflow_jobs.csv, always of one scale. `ember estimate` and the
Snakefile (`runtime=`) predict from the same records.

Only the standard library is imported, because every dry run reads this.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = "the last run here"


class Record(NamedTuple):
    """One finished job.

    gpu: whether it was given an accelerator, None where the record does not say. source: `HERE`, or
    the table it stands in. machine: "" where the record does not say.
    """

    job: str
    rule: str
    seconds: float
    source: str = HERE
    gpu: bool | None = None
    max_rss_mb: float | None = None
    output_bytes: int | None = None
    machine: str = ""


class History(NamedTuple):
    """Records of one scale; `notes` says what was left out and why."""

    records: Sequence[Record] = ()
    notes: Sequence[str] = ()


class Prediction(NamedTuple):
    """The median of `records`, and the longest that a record has ever taken.

    same_job: False where they are of other jobs of its rule, which are not scaled to its size.
    """

    seconds: float
    longest: float
    records: Sequence[Record]
    same_job: bool


def read_history(scale: str, results: Path, measured: Path | None = None) -> History:
    """Records of `scale` in a results folder and under `measured`; unreadable ones are noted."""
    records, notes = [], []
    for path in sorted((results / scale / "benchmarks").glob("*.jsonl")):
        try:
            lines = [
                json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()
            ]
            found = [_benchmark(path.stem, line) for line in lines]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            found = []
        if not found:
            notes.append(f"{path} is not a benchmark: left out")
        records += found
    for path in sorted(measured.glob("*/workflow_jobs.csv")) if measured else ():
        records += _table(path, scale, notes)
    return History(tuple(records), tuple(notes))


def predict(history: History, job: str, rule: str, gpu: bool | None = None) -> Prediction | None:
    """Seconds of `job` by earlier runs on the same kind of device, None without a record.

    The same job before others of its rule, this folder's last run before committed tables. gpu:
    whether the job gets an accelerator; None if that is not known, then records with one are
    preferred.
    """
    for key, name in (("job", job), ("rule", rule)):
        found = [record for record in history.records if getattr(record, key) == name]
        if gpu is None:
            found = [record for record in found if record.gpu] or found
        else:
            found = [record for record in found if record.gpu in (gpu, None)]
        if found:
            nearest = [record for record in found if record.source == HERE] or found
            longest = max(record.seconds for record in found)
            middle = median(record.seconds for record in nearest)
            return Prediction(middle, longest, nearest, key == "job")
    return None


def runtime_minutes(
    prediction: Prediction | None, limit: int, attempt: int, factor: float, minimum: int
) -> int:
    """Minutes to ask a cluster for: the longest record times `factor`, at least `minimum`.

    Never more than `limit`, doubled with every attempt. Without a prediction, and from the third
    attempt on, when the prediction has failed twice, `limit` itself grows.
    """
    doubled = 2 ** (attempt - 1)
    if prediction is None or attempt > 2:
        return limit * doubled
    return min(limit, max(minimum, math.ceil(prediction.longest * factor / 60))) * doubled


def _benchmark(job: str, line: Mapping) -> Record:
    # The profiles ask for extended benchmarks; without them the rule and device are not known.
    resources = line.get("resources")
    gpu = bool(resources.get("gpu")) if isinstance(resources, dict) else None
    rule, rss = str(line.get("rule_name") or job), _number(line.get("max_rss"))
    return Record(job, rule, _seconds(line["s"]), gpu=gpu, max_rss_mb=rss)


def _table(path: Path, scale: str, notes: list[str]) -> list[Record]:
    """Rows of a published table workflow_jobs at `scale`."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{path} cannot be read ({error}): left out")
        return []
    records, bad = [], 0
    for row in rows:
        # A header carries the unit where the name does not: "max_rss_mb (MB)".
        cells = {(key or "").split(" ")[0]: value for key, value in row.items()}
        try:
            if cells["scale"] == scale:
                records.append(_row(cells, path))
        except (KeyError, ValueError, TypeError):
            bad += 1
    if bad:
        notes.append(f"{path}: {bad} of {len(rows)} rows do not parse: left out")
    return records


def _row(cells: Mapping, path: Path) -> Record:
    if not (cells["job"] and cells["rule"] and cells["device"]):
        raise ValueError("incomplete")
    size = _number(cells.get("output_bytes"))
    return Record(
        job=cells["job"],
        rule=cells["rule"],
        seconds=_seconds(cells["wall_s"]),
        source=f"{path.parent.name}/{path.name}",
        gpu=cells["device"] != "cpu",
        max_rss_mb=_number(cells.get("max_rss_mb")),
        output_bytes=None if size is None else int(size),
        machine=cells.get("machine") or "",
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
