"""The comparison of two commits' runs tells what is equal, what varies and what differs."""

import math

import pyarrow as pa
import pyarrow.parquet as pq

from tests.compare_runs import compare


def run(folder, **tables):
    for name, columns in tables.items():
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def test_columns_are_equal_vary_or_differ(tmp_path):
    steady = {"n": [1, 2], "share": [0.5, math.nan], "form": ["native", "native"]}
    before = run(tmp_path / "before", old={**steady, "ms": [1.0, 2.0]}, gone={"n": [1]})
    again = run(tmp_path / "again", old={**steady, "ms": [1.1, 2.0]}, gone={"n": [1]})
    renamed = {"n": [1, 2], "share": [0.5, math.nan], "form": ["compiled", "compiled"]}
    after = run(tmp_path / "after", new={**renamed, "ms": [9.0, 9.0], "more": [0, 0]})
    lines, equal, varying = compare(before, again, after, {"old": "new"}, {"native": "compiled"})
    assert lines == ["gone.parquet: missing after", "old.parquet: column more is new"]
    assert (equal, varying) == (3, 1)
    lines, equal, _ = compare(before, again, after, {"old": "new"}, {})
    assert any("form: 2 of 2 rows, first 0: 'native' before, 'compiled' after" in x for x in lines)
    assert equal == 2
