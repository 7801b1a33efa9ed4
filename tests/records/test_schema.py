"""Schemas refuse contradictions, survive a round trip and say how they differ."""

import dataclasses

import pytest

from ember.records.errors import BadSchema, EmberError
from ember.records.schema import EVIDENCE, STATUS, WEIGHTS, Column, Schema, differences


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        ((), (), "at least one column"),
        ((Column("a", "int"), Column("a", "str")), (), "declared twice: a"),
        ((Column("a", "int"),), ("b",), "names no column: b"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(columns, key, says):
    with pytest.raises(BadSchema, match=says):
        Schema("t", "", columns, key)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "", "type": "int"}, "without a name"),
        ({"name": "a", "type": "integer"}, "unknown type 'integer'"),
        ({"name": "a", "type": "int", "values": ("x",)}, "str columns only"),
    ],
)
def test_a_bad_column_is_refused(arguments, says):
    with pytest.raises(BadSchema, match=says):
        Column(**arguments)


def test_round_trip_through_plain_data(times):
    assert Schema.from_dict(times.to_dict()) == times


def test_the_evidence_columns_know_their_values():
    assert EVIDENCE.values == ("measured", "modelled", "reference")
    assert WEIGHTS.values == ("trained", "random", "pretrained")
    assert STATUS.values == ("ok", "skipped", "failed")


def test_an_unknown_column_is_named_with_those_there_are(times):
    assert times.column("context").unit == "tokens"
    with pytest.raises(EmberError, match="no column 'contxt'\nit has context, prefill_ms"):
        times.column("contxt")


def changed(schema, **changes):
    return dataclasses.replace(schema, **changes)


def test_differences(times):
    context, prefill, note, evidence = times.columns
    assert differences(times, times) == []
    reworded = dataclasses.replace(context, meaning="tokens of the prompt")
    assert differences(times, changed(times, columns=(reworded, *times.columns[1:]))) == []

    def found(*columns, **other):
        return differences(changed(times, columns=columns, **other), times)

    assert found(context, prefill, note) == ["it lacks the column evidence"]
    assert found(*times.columns, Column("x", "int")) == ["it has the undeclared column x"]
    as_float = dataclasses.replace(context, type="float")
    assert found(as_float, prefill, note, evidence) == ["column context is float, declared int"]
    with_nulls = dataclasses.replace(prefill, nullable=True)
    assert found(context, with_nulls, note, evidence) == [
        "column prefill_ms may hold nulls, declared without"
    ]
    assert found(prefill, context, note, evidence) == ["its columns stand in another order"]
    assert found(*times.columns, key=("note",)) == ["its key is note, declared context"]
    assert differences(changed(times, name="other"), times) == [
        "it holds the table 'other', not 'times'"
    ]
