"""Packed products and decoding, over their runs, beside dense ones."""

from ember.measure.cost import read_ms
from ember.studies.lowbit.kernels.tables import DECODE, DECODE_RUNS, KERNELS, PRODUCT_RUNS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(KERNELS)
def summarise_kernels(products) -> list[dict]:
    """Rows of KERNELS from a table PRODUCT_RUNS."""
    found, fastest = [], {}
    for runs in grouped(
        records(products, PRODUCT_RUNS), "product", "rows", "format", "path"
    ).values():
        row, timed = summary_row(KERNELS, runs)
        if timed:
            row["gb_s_median"] = row["weight_bytes"] / row["ms_median"] / 1e6
            row["share"] = row["gb_s_median"] / row["read_gb_s"]
        if row["format"] == "dense":
            place = row["product"], row["rows"]
            fastest[place] = min(row["ms_median"], fastest.get(place, row["ms_median"]))
        found.append(row)
    for row in found:
        if row["ms_median"] is not None:
            row["speedup"] = fastest[row["product"], row["rows"]] / row["ms_median"]
    return found


@makes(DECODE)
def summarise_decoding(decoding) -> list[dict]:
    """Rows of DECODE from a table DECODE_RUNS."""
    found, dense = [], {}
    runs = grouped(records(decoding, DECODE_RUNS), "rows", "engine", "format", "head")
    for some in runs.values():
        row, timed = summary_row(DECODE, some)
        if timed:
            read = read_ms(row["weight_bytes"] + row["kv_bytes"], row["read_gb_s"])
            row["limit_tokens_per_s"] = row["rows"] / read * 1e3
            row["share"] = row["tokens_per_s_median"] / row["limit_tokens_per_s"]
        if row["format"] == "dense":
            dense[row["rows"]] = row
        found.append(row)
    for row in found:
        if row["n"]:
            beside = dense[row["rows"]]
            row["speedup"] = row["tokens_per_s_median"] / beside["tokens_per_s_median"]
            row["prefill_ratio"] = row["prefill_ms_median"] / beside["prefill_ms_median"]
    return found
