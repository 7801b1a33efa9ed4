"""What is written is what is read; what is broken is named."""

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.records.errors import (
    BadRow,
    BadTable,
    DamagedTable,
    ForeignTable,
    MissingTable,
    SchemaMismatch,
    TruncatedTable,
)
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import (
    content_sha256,
    read_rows,
    read_table,
    table_header,
    table_provenance,
    table_schema,
    write_table,
)

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = {
    "str": TEXT,
    "int": INTS,
    "float": FLOATS,
    "bool": st.booleans(),
    "list[int]": st.lists(INTS, max_size=4),
    "list[float]": st.lists(FLOATS, max_size=4),
}


@st.composite
def tables(draw):
    """A schema and rows that are valid under it."""
    names = draw(st.lists(TEXT.filter(bool), min_size=1, max_size=5, unique=True))
    columns = tuple(
        Column(name, draw(st.sampled_from(list(VALUES))), nullable=draw(st.booleans()))
        for name in names
    )
    cells = {
        c.name: st.one_of(st.none(), VALUES[c.type]) if c.nullable else VALUES[c.type]
        for c in columns
    }
    return Schema("t", draw(TEXT), columns), draw(
        st.lists(st.fixed_dictionaries(cells), max_size=6)
    )


def exact(rows):
    """Rows told apart by type and sign of zero too."""
    return repr([sorted(row.items()) for row in rows])


@settings(max_examples=80, deadline=None)
@given(tables())
def test_any_valid_rows_round_trip(tmp_path_factory, case):
    schema, rows = case
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write_table(path, rows, schema, {"rule": "x"})
    assert exact(read_rows(path, schema)) == exact(rows)
    assert table_schema(path) == schema
    assert table_provenance(path) == {"rule": "x"}
    # Rows read from a table can be written again and hold the same.
    again = write_table(path.with_name("again.parquet"), read_rows(path, schema), schema)
    assert exact(read_rows(again, schema)) == exact(rows)
    assert table_header(again)["content_sha256"] == table_header(path)["content_sha256"]


@functools.cache
def sample(folder):
    schema = Schema("t", "", (Column("a", "int"), Column("s", "str")))
    rows = [{"a": n, "s": "PAR1" * (n % 5)} for n in range(50)]
    return write_table(folder / "t.parquet", rows, schema, {"rule": "r"}).read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_truncation_is_detected(tmp_path_factory, data):
    whole = sample(tmp_path_factory.getbasetemp())
    kept = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "t.parquet"
    path.write_bytes(whole[:kept])
    with pytest.raises((TruncatedTable, DamagedTable), match=r"delete it and run `\S*snakemake"):
        read_rows(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_byte_changes_what_is_read(tmp_path_factory, data):
    whole = bytearray(sample(tmp_path_factory.getbasetemp()))
    place = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("flip") / "t.parquet"
    path.write_bytes(whole)
    before = read_rows(path)
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        after = read_rows(path)
    except BadTable:
        return
    assert after == before  # the byte was padding, or a statistic nobody reads


def test_a_truncated_file_says_so(tmp_path, times, rows):
    path = write_table(tmp_path / "t.parquet", rows, times)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TruncatedTable) as caught:
        read_table(path)
    cause, remedy = str(caught.value).splitlines()
    assert cause.startswith(f"{path} is truncated")
    assert remedy.startswith("delete it and run `")
    assert remedy.endswith(f"snakemake --profile local {path}`")


def test_an_empty_file_is_truncated(tmp_path):
    (tmp_path / "t.parquet").touch()
    with pytest.raises(TruncatedTable, match="after 0 bytes"):
        read_rows(tmp_path / "t.parquet")


def test_some_tables_are_read_one_after_the_other(tmp_path, times, rows):
    paths = [write_table(tmp_path / f"{name}.parquet", rows, times) for name in "ab"]
    one, both = read_table(paths[0]), read_table(paths, times)
    assert both.to_dict("list") == {k: 2 * v for k, v in one.to_dict("list").items()}


def test_missing(tmp_path):
    with pytest.raises(MissingTable, match=r"t\.parquet does not exist\nmake it with"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(MissingTable, match="is a directory"):
        read_table(tmp_path)


def test_foreign_parquet_is_told_from_no_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"context": [1]}), path)
    with pytest.raises(ForeignTable, match="was not written by ember"):
        read_table(path)
    path.write_text("context,prefill_ms\n")
    with pytest.raises(ForeignTable, match="is not a Parquet file"):
        read_table(path)


def test_another_schema_is_named_with_the_difference(tmp_path, times, rows):
    path = write_table(tmp_path / "t.parquet", rows, times)
    other = dataclasses.replace(times, columns=(*times.columns, Column("decode_ms", "float", "ms")))
    with pytest.raises(SchemaMismatch, match="it lacks the column decode_ms") as caught:
        read_table(path, other)
    assert "delete it and run" in str(caught.value)


def rewritten(path, change):
    """The file with its data changed behind the checksum's back."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.slice(1), "it holds 1 rows, written were 2"),
        (lambda table: table.take([1, 0]), "does not match its checksum"),
        (lambda table: table.select(table.column_names[1:]), "not those it declares"),
        (
            lambda table: table.set_column(
                1, table.schema.field(1), pa.array([12.25, 30.500000000000004])
            ),
            "does not match its checksum",
        ),
    ],
)
def test_changed_content_is_detected(tmp_path, times, rows, change, says):
    path = write_table(tmp_path / "t.parquet", rows, times)
    rewritten(path, change)
    with pytest.raises(DamagedTable, match=says):
        read_table(path, times)


def test_changed_provenance_is_detected(tmp_path, times, rows):
    path = write_table(tmp_path / "t.parquet", rows, times, {"rule": "a"})
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    metadata[b"ember"] = metadata[b"ember"].replace(b'"rule": "a"', b'"rule": "b"')
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(DamagedTable, match="schema or provenance"):
        table_provenance(path)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 6))
def test_the_checksum_does_not_depend_on_chunks_or_slices(case, cut):
    schema, rows = case
    arrays = {}
    for column in schema.columns:
        kind = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        name = column.type.removeprefix("list[").removesuffix("]")
        arrow = pa.list_(kind[name]) if column.type.startswith("list") else kind[name]
        arrays[column.name] = pa.array([row[column.name] for row in rows], arrow)
    table = pa.table(arrays)
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    padded = pa.concat_tables([table.slice(0, 1), table]).combine_chunks().slice(min(1, len(rows)))
    assert content_sha256(pieces) == content_sha256(table) == content_sha256(padded)


def test_the_checksum_tells_apart_what_looks_alike():
    def hashed(values, kind):
        return content_sha256(pa.table({"a": pa.array(values, kind)}))

    text, numbers = pa.string(), pa.list_(pa.int64())
    assert hashed(["ab", "c"], text) != hashed(["a", "bc"], text)
    assert hashed([None], text) != hashed([""], text)
    assert hashed([None], pa.int64()) != hashed([0], pa.int64())
    assert hashed([0], pa.int64()) != hashed([False], pa.bool_())
    assert hashed([[1], [2, 3]], numbers) != hashed([[1, 2], [3]], numbers)
    assert hashed([None], numbers) != hashed([[]], numbers)
    assert hashed([0.0], pa.float64()) != hashed([-0.0], pa.float64())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prefil_ms": 1.0}, r"row 1 \(.*\): unknown column prefil_ms"),
        ({"prefill_ms": None}, "column prefill_ms, row 1: it is null"),
        ({"prefill_ms": math.nan}, "column prefill_ms, row 1: it is NaN"),
        ({"prefill_ms": -math.inf}, "column prefill_ms, row 1: it is infinite"),
        ({"prefill_ms": "30"}, "column prefill_ms, row 1: '30' is str, not float"),
        ({"prefill_ms": True}, "column prefill_ms, row 1: True is bool, not float"),
        ({"prefill_ms": 10**400}, "column prefill_ms, row 1: .* does not fit a float"),
        ({"context": 1.0}, "column context, row 1: 1.0 is float, not int"),
        ({"context": True}, "column context, row 1: True is bool, not int"),
        ({"context": 2**63}, "column context, row 1: .* does not fit 64 bits"),
        ({"context": 512}, "row 1: the key context=512 already stands in row 0"),
        ({"note": "\ud800"}, "column note, row 1: .* is not valid Unicode"),
        ({"note": b"x"}, "column note, row 1: b'x' is bytes, not str"),
        ({"evidence": "guessed"}, "'guessed' is not one of measured, modelled, reference"),
    ],
)
def test_bad_rows_name_column_and_row(tmp_path, times, rows, change, says):
    path = tmp_path / "t.parquet"
    with pytest.raises(BadRow, match=says) as caught:
        write_table(path, [rows[0], rows[1] | change, rows[1] | {"context": 7}], times)
    assert "table times" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_column_is_named(tmp_path, times, rows):
    del rows[1]["note"]
    with pytest.raises(BadRow, match=r"row 1 .*missing column note\nthe schema declares context"):
        write_table(tmp_path / "t.parquet", rows, times)
    with pytest.raises(BadRow, match="pass a list of rows"):
        write_table(tmp_path / "t.parquet", rows[0], times)


@pytest.mark.parametrize("value", [[1, None], [1, 2.5], "12", [True], {1}])
def test_bad_lists_are_refused(tmp_path, value):
    schema = Schema("t", "", (Column("tokens", "list[int]"),))
    with pytest.raises(BadRow, match="column tokens, row 0"):
        write_table(tmp_path / "t.parquet", [{"tokens": value}], schema)


def test_scalars_and_arrays_of_numpy_and_torch_are_taken(tmp_path):
    torch = pytest.importorskip("torch")
    schema = Schema(
        "t",
        "",
        (
            Column("i", "int"),
            Column("f", "float"),
            Column("b", "bool"),
            Column("l", "list[int]"),
            Column("m", "list[float]"),
        ),
    )
    row = {
        "i": np.int32(3),
        "f": np.float32(0.5),
        "b": np.bool_(True),
        "l": torch.tensor([1, 2]),
        "m": (np.float64(1.5), 2),
    }
    path = write_table(tmp_path / "t.parquet", [row], schema)
    assert exact(read_rows(path)) == exact(
        [{"i": 3, "f": 0.5, "b": True, "l": [1, 2], "m": [1.5, 2.0]}]
    )


def test_dataframes_with_missing_values(tmp_path):
    schema = Schema(
        "t",
        "",
        (
            Column("rank", "int", nullable=True),
            Column("loss", "float", nullable=True),
            Column("equal", "bool", nullable=True),
            Column("reason", "str", nullable=True),
        ),
    )
    whole = {"rank": 8, "loss": 1.5, "equal": True, "reason": "x"}
    path = write_table(tmp_path / "t.parquet", [whole, dict.fromkeys(whole)], schema)
    read = read_table(path)
    assert read["rank"].dtype == pd.Int64Dtype()
    assert read["equal"].dtype == pd.BooleanDtype()
    assert read.isna().to_numpy().tolist() == [[False] * 4, [True] * 4]
    with pytest.raises(BadRow, match=r"column rank, row 0: 8\.5 is float, not int"):
        write_table(path, [whole | {"rank": 8.5}], schema)


def test_an_empty_table_keeps_its_columns(tmp_path, times):
    path = write_table(tmp_path / "t.parquet", [], times)
    assert read_rows(path, times) == []
    assert list(read_table(path).columns) == list(times.names)


def test_a_failed_write_keeps_the_old_table(tmp_path, times, rows):
    path = write_table(tmp_path / "t.parquet", rows, times)
    with pytest.raises(BadRow):
        write_table(path, [rows[0] | {"prefill_ms": math.nan}], times)
    assert read_rows(path, times) == rows


def test_keys_with_nulls_and_lists(tmp_path):
    schema = Schema(
        "t", "", (Column("r", "int", nullable=True), Column("l", "list[int]")), ("r", "l")
    )
    rows = [{"r": None, "l": [1]}, {"r": None, "l": [2]}, {"r": 1, "l": [1]}]
    assert read_rows(write_table(tmp_path / "t.parquet", rows, schema)) == rows
    with pytest.raises(BadRow, match="row 3: the key r=None, l=\\[1\\] already stands in row 0"):
        write_table(tmp_path / "t.parquet", [*rows, rows[0]], schema)


def test_evidence_is_one_of_three(tmp_path):
    schema = Schema("t", "", (EVIDENCE,))
    path = write_table(tmp_path / "t.parquet", [{"evidence": v} for v in EVIDENCE.values], schema)
    assert len(read_rows(path)) == 3
