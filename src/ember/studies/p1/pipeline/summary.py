"""The pipeline's table: measured by split and mode, beside prediction and an earlier run."""

from collections.abc import Mapping, Sequence

from ember.measure.statistics import ends
from ember.pipeline.plan import plan_units
from ember.studies.p1.pipeline.schedule import best_split, makespan, read_costs
from ember.studies.p1.pipeline.tables import LAYER_COSTS, PIPELINE, PIPELINE_RUNS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes

SAME = ("model", "device", "dtype", "context", "generation", "sequences", "micro_batches", "chunks")


@makes(PIPELINE)
def summarise_pipeline(runs, costs, anchor=()) -> list[dict]:
    """Rows of PIPELINE from tables PIPELINE_RUNS and LAYER_COSTS (paths, data frames or rows).

    `anchor`: an earlier PIPELINE table. Its points give deltas where model, device, number format
    and workload are the same; elsewhere a note says what is not.
    """
    rows = [_measured(runs) for runs in grouped(records(runs, PIPELINE_RUNS), "point").values()]
    _compare(rows)
    _predict(rows, [c for c in records(costs, LAYER_COSTS) if c["status"] == "ok"])
    if anchor:
        earlier = {row["point"]: row for row in records(anchor, PIPELINE)}
        for row in rows:
            row |= _delta(row, earlier.get(row["point"]))
    return rows


def _measured(repeats: Sequence[Mapping]) -> dict:
    row, timed = summary_row(PIPELINE, repeats)
    equal = min((repeat["tokens_equal_share"] for repeat in timed), default=None)
    return row | {"tokens_equal_share": equal}


def _compare(rows: list[dict]) -> None:
    """Standing among the two-stage points, and speed-up over one device."""
    timed = [row for row in rows if row["n"]]
    single = next((row for row in timed if row["mode"] == "single"), None)
    staged = [row for row in timed if row["mode"] != "single"]
    best = max(staged, key=lambda row: row["tokens_per_s_median"], default=None)
    for row in staged:
        if single is not None:
            row["speedup_to_single"] = row["tokens_per_s_median"] / single["tokens_per_s_median"]
        overlaps = ends(row, "tokens_per_s")[1] >= ends(best, "tokens_per_s")[0]
        row["standing"] = "best" if row is best else "no difference" if overlaps else "slower"


def _predict(rows: list[dict], cost_rows: list[dict]) -> None:
    if not cost_rows:
        return
    costs, solved = read_costs(cost_rows), None
    for row in rows:
        if row["mode"] == "single":
            continue
        overlap = row["mode"] == "overlap"
        lengths = [row["context"]] * row["micro_batches"]
        units = plan_units(lengths, row["generation"], chunks=row["chunks"], overlap=overlap)
        schedule = makespan(units, costs, row["first_layers"], overlap=overlap)
        tokens = row["sequences"] * row["generation"]
        row["predicted_tokens_per_s"] = tokens / schedule.total * 1e3
        row["predicted_bubble_share"] = schedule.bubble_share
        if row["n"]:
            measured = row["tokens_per_s_median"]
            row["predicted_to_measured"] = row["predicted_tokens_per_s"] / measured
        if overlap:
            solved = solved or best_split(units, costs)
            layers = len(costs["decode"].layers)
            row["predicted_best_split"] = f"{solved}+{layers - solved}"
            row["predicted_best"] = row["first_layers"] == solved


def _delta(row: Mapping, earlier: Mapping | None) -> dict:
    if earlier is None:
        return {"anchor_note": "the anchor has no such point"}
    other = [name for name in SAME if row[name] != earlier[name]]
    if other:
        said = ", ".join(f"{name} {earlier[name]}" for name in other)
        return {"anchor_note": f"the anchor differs: {said}"}
    if not (row["n"] and earlier["n"]):
        return {"anchor_note": "skipped here or there"}
    before = earlier["tokens_per_s_median"]
    delta = row["tokens_per_s_median"] / before - 1
    return {"anchor_tokens_per_s": before, "delta_to_anchor": delta}
