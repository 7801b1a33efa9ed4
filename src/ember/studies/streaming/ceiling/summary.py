"""What each way of keeping the cache saves, and whether that is beyond noise (S-5, S-4's rule)."""

from ember.measure.cost import read_ms
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes
from ember.studies.streaming.ceiling.tables import CEILING_RUNS, STREAMING_CEILING


@makes(STREAMING_CEILING)
def summarise_caches(runs, *, noise: float) -> list[dict]:
    """Rows of STREAMING_CEILING. A gain counts where even the slowest run is faster than the
    fastest of slice_cat, by more than `noise`."""
    groups = grouped(records(runs, CEILING_RUNS), "kind", "compression_interval")
    found = []
    [base] = [rows for (kind, _), rows in groups.items() if kind == "slice_cat"]
    base, _ = summary_row(STREAMING_CEILING, base)
    for rows in groups.values():
        row, _ = summary_row(STREAMING_CEILING, rows)
        row["gain"] = 1 - row["cache_ms_median"] / base["cache_ms_median"]
        stable = row["cache_ms_max"] < base["cache_ms_min"] * (1 - noise)
        row["copied_tokens"] = row["copied_bytes"] / row["kv_bytes"]
        row["verdict"] = (
            "the reference"
            if row["kind"] == "slice_cat"
            else "stable gain"
            if stable
            else "negative result: no stable gain beyond noise"
        )
        found.append(row | _floors(row))
    return found


def _floors(row: dict) -> dict:
    """What no way of keeping the cache is faster than, at the bandwidths of the run (S-5)."""
    token, cache, copied = row["kv_bytes"], row["last_cache"] or 0, row["copied_bytes"]
    held = copied + token if row["kind"] == "append_cat" else row["peak"] * token
    found = dict.fromkeys(("floor_ms", "share", "token_floor_ms"))
    if 2 * held > cache:
        floor = read_ms(2 * copied, row["copy_gb_s"])
        found |= {"floor_ms": floor, "share": floor / row["cache_ms_median"]}
    if row["weight_bytes"] + held > cache:
        bytes_ = row["weight_bytes"] + held + 2 * copied
        found["token_floor_ms"] = read_ms(bytes_, row["read_gb_s"])
    return found
