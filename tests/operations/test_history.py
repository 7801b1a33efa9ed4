"""Records of earlier jobs: which count, what they predict, and what a cluster is asked for."""

import csv
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.operations.history import (
    HERE,
    History,
    Record,
    predict,
    read_history,
    runtime_minutes,
)
from ember.records.render import render
from ember.studies.workflow.cost.tables import WORKFLOW_JOBS
from tests.rows import example


def benchmark(results, job, *seconds, scale="tiny", **more):
    folder = results / scale / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"s": s, "max_rss": 100.0, "cpu_time": "NA"} | more) for s in seconds]
    (folder / f"{job}.jsonl").write_text("\n".join(lines) + "\n")


def row(job, wall_s, rule=None, **more):
    facts = {"scale": "tiny", "stage": "models", "rule": rule or job, "job": job, "wall_s": wall_s}
    facts |= {"wall_from": "benchmark", "timing": False, "device": "cpu", "machine": "Toy CPU"}
    return example(
        WORKFLOW_JOBS, **facts | {"threads": 2, "max_rss_mb": 512.5, "output_bytes": 1000} | more
    )


def table(path, *rows):
    """The table as the workflow publishes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    render(rows, WORKFLOW_JOBS, path.with_suffix(""))


@pytest.fixture
def places(tmp_path):
    """A results folder, and a folder of measured tables."""
    return tmp_path / "results", tmp_path / "measured"


def test_a_benchmark_and_a_published_row_are_read_in_full(places):
    results, measured = places
    benchmark(results, "train_model_policy", 30.0)
    table(measured / "cpu" / "workflow_jobs.csv", row("gate", 4.5, device="NVIDIA H200"))
    benchmark(results, "train_model_gate", 2.0, rule_name="train_model", resources={"gpu": 1})
    gate, own, committed = read_history("tiny", results, measured).records
    assert own == Record("train_model_policy", "train_model_policy", 30.0, max_rss_mb=100.0)
    assert (gate.rule, gate.gpu) == ("train_model", True)
    assert committed == Record(
        *("gate", "gate", 4.5, "cpu/workflow_jobs.csv", True, 512.5, 1000, "Toy CPU")
    )


def test_the_own_run_comes_before_committed_ones_and_all_give_the_longest(places):
    results, measured = places
    benchmark(results, "gate", 10.0)
    table(measured / "cpu" / "workflow_jobs.csv", row("gate", 4.0))
    table(measured / "other" / "workflow_jobs.csv", row("gate", 14.0))
    found = predict(read_history("tiny", results, measured), "gate", "gate", gpu=False)
    assert (found.seconds, found.longest) == (10.0, 14.0)
    assert [record.source for record in found.records] == [HERE]


def test_committed_records_alone_give_their_median(places):
    results, measured = places
    for name, seconds in (("a", 4.0), ("b", 5.0), ("c", 20.0)):
        table(measured / name / "workflow_jobs.csv", row("gate", seconds))
    found = predict(read_history("tiny", results, measured), "gate", "gate")
    assert (found.seconds, found.longest) == (5.0, 20.0)


def test_a_committed_record_of_the_job_comes_before_own_ones_of_other_wildcards(places):
    results, measured = places
    benchmark(results, "build_corpus_long", 90.0, rule_name="build_corpus")
    table(measured / "cpu" / "workflow_jobs.csv", row("build_corpus_short", 3.0, "build_corpus"))
    history = read_history("tiny", results, measured)
    assert predict(history, "build_corpus_short", "build_corpus").same_job
    assert predict(history, "build_corpus_short", "build_corpus").seconds == 3.0
    other = predict(history, "build_corpus_web", "build_corpus")
    assert (other.same_job, other.seconds, other.longest) == (False, 90.0, 90.0)


def test_scales_and_devices_are_not_mixed(places):
    results, measured = places
    benchmark(results, "gate", 1.0, scale="smoke")
    rows = row("gate", 2.0, scale="gpu"), row("gate", 3.0, device="NVIDIA H200")
    table(measured / "h200" / "workflow_jobs.csv", *rows)
    history = read_history("tiny", results, measured)
    assert [record.seconds for record in history.records] == [3.0]
    assert predict(history, "gate", "gate", gpu=False) is None
    assert predict(history, "gate", "gate", gpu=True).seconds == 3.0
    assert predict(history, "gate", "gate").seconds == 3.0


def test_where_the_device_is_not_known_accelerators_are_preferred():
    cpu = Record("gate", "gate", 9.0, "cpu/w.csv", gpu=False)
    gpu = Record("gate", "gate", 1.0, "h200/w.csv", gpu=True)
    assert predict(History((cpu, gpu)), "gate", "gate").seconds == 1.0
    assert predict(History((cpu,)), "gate", "gate").seconds == 9.0


def test_no_record_is_no_prediction(places):
    results, measured = places
    history = read_history("tiny", results, measured)
    assert history == History()
    assert predict(history, "gate", "gate") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "7", '{"s": "NA"}', '{"s": -1}', '{"s": NaN}', '{"m": 3}', "\x00"],
)
def test_a_damaged_benchmark_is_left_out_and_named(places, content):
    results, measured = places
    benchmark(results, "gate", 2.0)
    benchmark(results, "train", 5.0)
    (results / "tiny" / "benchmarks" / "train.jsonl").write_text(content)
    history = read_history("tiny", results, measured)
    assert [record.job for record in history.records] == ["gate"]
    [note] = history.notes
    assert "train.jsonl is not a benchmark" in note


def test_a_benchmark_of_bytes_is_left_out(places):
    results, measured = places
    benchmark(results, "gate", 2.0)
    (results / "tiny" / "benchmarks" / "gate.jsonl").write_bytes(b"\xff\xfe\x80")
    assert read_history("tiny", results, measured).records == ()


def test_rows_that_do_not_parse_are_left_out_and_counted(places):
    results, measured = places
    path = measured / "cpu" / "workflow_jobs.csv"
    table(path, row("gate", 2.0), row("train", 3.0), row("", 3.0))
    path.write_text(path.read_text().replace(",3.0,", ",soon,"))
    history = read_history("tiny", results, measured)
    assert [record.job for record in history.records] == ["gate"]
    assert history.notes == (f"{path}: 2 of 3 rows do not parse: left out",)


def test_a_table_of_something_else_gives_no_records(places):
    results, measured = places
    path = measured / "cpu" / "workflow_jobs.csv"
    path.parent.mkdir(parents=True)
    path.write_text("a,b\n1,2\n")
    history = read_history("tiny", results, measured)
    assert history.records == ()
    assert "1 of 1 rows do not parse" in history.notes[0]
    path.write_bytes(b"\xff\xfe\x80\n")
    assert "cannot be read" in read_history("tiny", results, measured).notes[0]


def test_repeated_benchmarks_are_one_job_with_several_records(places):
    results, measured = places
    benchmark(results, "gate", 3.0, 1.0, 2.0)
    found = predict(read_history("tiny", results, measured), "gate", "gate")
    assert (found.seconds, found.longest) == (2.0, 3.0)


times = st.floats(0, 1e6)
records = st.builds(
    Record,
    st.sampled_from(["a_1", "a_2", "b"]),
    st.sampled_from(["a", "b"]),
    times,
    st.sampled_from([HERE, "results/t", "cpu/t"]),
    st.sampled_from([True, False, None]),
)


@given(st.lists(records, max_size=12), st.sampled_from([True, False, None]))
def test_a_prediction_rests_on_records_of_its_device_and_is_never_above_the_longest(found, gpu):
    prediction = predict(History(tuple(found)), "a_1", "a", gpu)
    if prediction is None:
        fits = [r for r in found if r.job == "a_1" or r.rule == "a"]
        assert all(gpu is not None and r.gpu not in (gpu, None) for r in fits)
        return
    assert prediction.seconds <= prediction.longest
    assert prediction.longest in {r.seconds for r in found}
    assert gpu is None or all(r.gpu in (gpu, None) for r in prediction.records)


@given(
    st.one_of(st.none(), times),
    st.integers(1, 1000),
    st.integers(1, 5),
    st.floats(1, 10),
    st.integers(1, 60),
)
def test_minutes_stay_below_what_grows_from_the_limit(seconds, limit, attempt, factor, minimum):
    record = Record("a", "a", seconds or 0.0)
    known = predict(History((record,)), "a", "a") if seconds is not None else None
    asked = [runtime_minutes(known, limit, n, factor, minimum) for n in (attempt, attempt + 1)]
    assert 1 <= asked[0] <= limit * 2 ** (attempt - 1)
    assert asked[1] >= 2 * asked[0]
    if known is None or attempt > 2:
        assert asked[0] == limit * 2 ** (attempt - 1)
    if known and attempt == 1 and asked[0] < limit:
        assert asked[0] >= minimum
        assert asked[0] * 60 >= seconds * factor


def test_minutes_by_hand():
    known = predict(History((Record("a", "a", 187.0),)), "a", "a")
    # 187 s x 3 = 9.35 minutes.
    assert [runtime_minutes(known, 30, n, 3.0, 5) for n in (1, 2, 3)] == [10, 20, 120]
    assert runtime_minutes(known, 30, 1, 1.0, 5) == 5
    assert runtime_minutes(known, 8, 1, 3.0, 5) == 8
    assert [runtime_minutes(None, 30, n, 3.0, 5) for n in (1, 2, 3)] == [30, 60, 120]


def test_only_the_standard_library_is_imported():
    code = (
        "import sys; before = set(sys.modules); import ember.operations.history; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'ember'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_published_header_has_the_columns_that_are_read(tmp_path):
    table(tmp_path / "workflow_jobs.csv", row("gate", 1.0))
    with open(tmp_path / "workflow_jobs.csv", newline="") as file:
        header = {name.split(" ")[0] for name in next(csv.reader(file))}
    read = {"scale", "job", "rule", "wall_s", "device", "machine", "max_rss_mb", "output_bytes"}
    assert read <= header
