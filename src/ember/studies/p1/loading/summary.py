"""Loading times in a row for each loader and state of the page cache (P1-1.4)."""

from ember.measure.statistics import summarise
from ember.studies.p1.loading.tables import LOADING, LOADING_RUNS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(LOADING)
def summarise_loading(runs) -> list[dict]:
    """Rows of LOADING from a LOADING_RUNS table: its path, a data frame or rows."""
    groups = grouped(records(runs, LOADING_RUNS), "loader", "cache")
    limits = {
        cache: summarise([run["mb_per_s"] for run in group])["median"]
        for (loader, cache), group in groups.items()
        if loader == "read" and all(run["status"] == "ok" for run in group)
    }
    rows = []
    for (_, cache), group in groups.items():
        row, timed = summary_row(LOADING, group)
        row["limit_mb_per_s"] = limits.get(cache)
        if timed:
            row["mb_per_s"] = summarise([run["mb_per_s"] for run in timed])["median"]
            if row["limit_mb_per_s"]:
                row["share_of_limit"] = row["mb_per_s"] / row["limit_mb_per_s"]
        rows.append(row)
    return rows
