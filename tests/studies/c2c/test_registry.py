"""The registry: a row for every run, keyed by all that makes it what it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.records.errors import BadProvenance, EmberError
from ember.records.tables import write_table
from ember.studies.c2c.point_tables import C2C_POINTS, POINT
from ember.studies.c2c.registry.summary import collect_runs, fingerprint
from ember.studies.c2c.registry.tables import C2C_REGISTRY

EXAMPLES = {
    "str": "x",
    "int": 1,
    "float": 0.5,
    "bool": True,
    "list[int]": [1, 0],
    "list[float]": [0.5, 0.5],
}
ALLOWED = {column.name: column.values[0] for column in C2C_POINTS.columns if column.values}
OTHER = {"str": "y", "int": 2, "float": 0.25, "bool": False}


def run(**changes) -> dict:
    row = {column.name: EXAMPLES[column.type] for column in C2C_POINTS.columns}
    return row | ALLOWED | {"weights": "trained", "evidence": "measured"} | changes


def made(fuser="f" * 64, scale="tiny", **params) -> dict:
    paths = {name: f"results/{scale}/c2c/{name}" for name in ("sharer", "receiver", "fuser")}
    hashes = {"sharer": "5" * 64, "receiver": "6" * 64, "fuser": fuser}
    return {
        "rule": "measure",
        "job": {"name": "measure_points_1"},
        "inputs": [{"path": paths[name], "sha256": hashes[name]} for name in paths],
        "arguments": paths,
        "params": {"code": "c", "points": [1], "batch_size": 4} | params,
        "config": {"scale": scale},
        "source": {"commit": "abc", "dirty": False},
        "versions": {"python": "3"},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 2.0,
    }


def table(folder, rows, **about):
    return str(
        write_table(
            folder / f"{len(list(folder.iterdir()))}.parquet", rows, C2C_POINTS, made(**about)
        )
    )


def test_a_run_has_one_row_over_its_strata(tmp_path):
    strata = [
        run(stratum="sharer_only", correct=[1, 1, 0], items=[0, 1, 2], measured_bytes=100.0),
        run(stratum="shared", correct=[1], items=[3], measured_bytes=60.0),
    ]
    (row,) = collect_runs([table(tmp_path, strata)])
    assert row["n"] == 4
    assert row["accuracy"] == 0.75
    assert row["measured_bytes"] == 90.0
    assert row["log"] == "logs/tiny/measure_points_1.log"
    assert row["alignment"] == "none"
    assert row["fuser"] != row["sharer"]
    write_table(tmp_path / "registry.parquet", [row], C2C_REGISTRY, {})


@pytest.mark.parametrize(
    "column",
    [column for column in POINT if column.name != "point" and column.type in OTHER],
    ids=lambda c: c.name,
)
def test_two_ablations_that_differ_in_one_field_have_two_keys(tmp_path, column):
    other = column.values[1] if column.values else OTHER[column.type]
    rows = collect_runs([table(tmp_path, [run()]), table(tmp_path, [run(**{column.name: other})])])
    assert len({row["key"] for row in rows}) == 2
    write_table(tmp_path / "registry.parquet", rows, C2C_REGISTRY, {})


@pytest.mark.parametrize("about", [{"fuser": "e" * 64}, {"scale": "gpu"}, {"alignment": "first"}])
def test_other_models_scales_and_alignments_have_keys_of_their_own(tmp_path, about):
    rows = collect_runs([table(tmp_path, [run()]), table(tmp_path, [run()], **about)])
    assert len({row["key"] for row in rows}) == 2


def test_what_only_says_how_a_run_came_about_is_no_part_of_its_key(tmp_path):
    again = {"code": "d", "points": [1, 2], "shards": "elsewhere"}
    paths = [table(tmp_path, [run()]), table(tmp_path, [run(channel_ms=9.0)], **again)]
    first, second = collect_runs(paths)
    assert first["key"] == second["key"]
    assert first["settings"] == second["settings"]
    with pytest.raises(EmberError, match="key"):  # and no table holds both
        write_table(tmp_path / "registry.parquet", [first, second], C2C_REGISTRY, {})


def test_a_table_of_unknown_origin_is_refused(tmp_path):
    write_table(tmp_path / "a.parquet", [run()], C2C_POINTS, {})
    with pytest.raises(BadProvenance, match="does not say what it was made from"):
        collect_runs(str(tmp_path / "a.parquet"))


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_the_order_of_fields_does_not_matter(fields):
    turned = dict(reversed(fields.items()))
    assert fingerprint(fields) == fingerprint(turned)
    assert fingerprint(fields | {"more": 1}) != fingerprint(fields | {"more": "1"})
