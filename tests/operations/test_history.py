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
    quantile,
    read_history,
    rule_names,
    runtime_minutes,
    with_spread,
)
from ember.records.provenance import source_root
from ember.records.render import render
from ember.studies.workflow.cost.tables import WORKFLOW_JOBS
from tests.rows import example

RULES = ("train", "train_model", "build_corpus")


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
    render(rows, WORKFLOW_JOBS, path.with_suffix(""), formats=("csv",))


@pytest.fixture
def places(tmp_path):
    """A results folder, and a folder of measured tables."""
    return tmp_path / "results", tmp_path / "measured"


def test_a_benchmark_and_a_published_row_are_read_in_full(places):
    results, measured = places
    benchmark(results, "train_model_policy", 30.0)
    table(measured / "cpu" / "workflow_jobs.csv", row("gate", 4.5, device="NVIDIA H200"))
    own, committed = read_history("tiny", results, measured, RULES).records
    assert own == Record(
        "train_model_policy", "train_model", 30.0, HERE, True, None, max_rss_mb=100.0
    )
    assert committed == Record(
        *("gate", "gate", 4.5, "cpu/workflow_jobs.csv", False, True, 512.5, 1000, "Toy CPU")
    )


def test_the_own_run_comes_before_committed_ones_and_all_span_the_interval(places):
    results, measured = places
    benchmark(results, "gate", 10.0)
    table(measured / "cpu" / "workflow_jobs.csv", row("gate", 4.0))
    table(measured / "other" / "workflow_jobs.csv", row("gate", 14.0))
    found = predict(read_history("tiny", results, measured), "gate", "gate", gpu=False)
    assert (found.seconds, found.low, found.high) == (10.0, 4.0, 14.0)
    assert [record.source for record in found.records] == [HERE]
    assert found.spread_from == "its records"


def test_committed_records_alone_give_their_median(places):
    results, measured = places
    for name, seconds in (("a", 4.0), ("b", 5.0), ("c", 20.0)):
        table(measured / name / "workflow_jobs.csv", row("gate", seconds))
    found = predict(read_history("tiny", results, measured), "gate", "gate")
    assert (found.seconds, found.low, found.high) == (5.0, 4.0, 20.0)


def test_a_committed_record_of_the_job_comes_before_own_ones_of_other_wildcards(places):
    results, measured = places
    benchmark(results, "build_corpus_long", 90.0)
    table(measured / "cpu" / "workflow_jobs.csv", row("build_corpus_short", 3.0, "build_corpus"))
    history = read_history("tiny", results, measured, RULES)
    assert predict(history, "build_corpus_short", "build_corpus").basis == "same job"
    assert predict(history, "build_corpus_short", "build_corpus").seconds == 3.0
    other = predict(history, "build_corpus_web", "build_corpus")
    assert (other.basis, other.seconds) == ("same rule", 90.0)
    assert (other.low, other.high) == (3.0, 90.0)


def test_scales_and_devices_are_not_mixed(places):
    results, measured = places
    benchmark(results, "gate", 1.0, scale="smoke")
    rows = row("gate", 2.0, scale="gpu"), row("gate", 3.0, device="NVIDIA H200")
    table(measured / "h200" / "workflow_jobs.csv", *rows)
    history = read_history("tiny", results, measured)
    assert [record.wall_s for record in history.records] == [3.0]
    assert predict(history, "gate", "gate", gpu=False) is None
    assert predict(history, "gate", "gate", gpu=True).seconds == 3.0
    assert predict(history, "gate", "gate").seconds == 3.0


def test_where_the_device_is_not_known_accelerators_are_preferred():
    cpu = Record("gate", "gate", 9.0, "cpu/w.csv", False, gpu=False)
    gpu = Record("gate", "gate", 1.0, "h200/w.csv", False, gpu=True)
    assert predict(History("gpu", (cpu, gpu)), "gate", "gate").seconds == 1.0
    assert predict(History("gpu", (cpu,)), "gate", "gate").seconds == 9.0


def test_no_record_is_no_prediction(places):
    results, measured = places
    history = read_history("tiny", results, measured)
    assert history == History("tiny")
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


def test_the_own_table_adds_to_the_run_that_it_describes(places):
    results, measured = places
    benchmark(results, "gate", 2.5)
    benchmark(results, "train", 8.0)
    table(results / "workflow_jobs.csv", row("gate", 2.5, device="cpu"), row("train", 6.0))
    history = read_history("tiny", results, measured)
    gate = predict(history, "gate", "gate")
    assert [(r.source, r.machine, r.output_bytes) for r in gate.records] == [
        (HERE, "Toy CPU", 1000)
    ]
    train = predict(history, "train", "train")
    assert (train.seconds, train.low, train.high) == (8.0, 6.0, 8.0), "an earlier run of its own"
    assert len(history.records) == 3


def test_a_jobs_own_clock_counts_only_where_there_is_no_benchmark(places):
    results, measured = places
    benchmark(results, "gate", 2.5)
    rows = row("gate", 1.0, wall_from="job"), row("train", 6.0, wall_from="job")
    table(results / "workflow_jobs.csv", *rows)
    history = read_history("tiny", results, measured)
    assert [(r.job, r.wall_s) for r in history.records] == [("gate", 2.5), ("train", 6.0)]


def test_an_extended_benchmark_says_rule_and_device(places):
    results, measured = places
    benchmark(results, "train_b_c", 2.0, rule_name="train", resources={"gpu": 1, "mem_mb": 5})
    [record] = read_history("tiny", results, measured, RULES).records
    assert (record.rule, record.gpu) == ("train", True)


def test_the_longest_rule_that_fits_names_a_benchmark(places):
    results, measured = places
    for job in ("train_model_policy", "train_x", "build_corpus", "else"):
        benchmark(results, job, 1.0)
    records = read_history("tiny", results, measured, RULES).records
    named = {record.job: record.rule for record in records}
    assert named == {
        "train_model_policy": "train_model",
        "train_x": "train",
        "build_corpus": "build_corpus",
        "else": "else",
    }


def test_repeated_benchmarks_are_one_job_with_several_records(places):
    results, measured = places
    benchmark(results, "gate", 3.0, 1.0, 2.0)
    found = predict(read_history("tiny", results, measured), "gate", "gate")
    assert (found.seconds, found.low, found.high) == (2.0, 1.0, 3.0)


def pairs(count):
    """Jobs with an own record of 10 s and a committed one of 5, 15, 25, … s."""
    own = [Record(f"j{n}", "r", 10.0, HERE, True, False) for n in range(count)]
    committed = [Record(f"j{n}", "r", 10.0 * n + 5, "t", False, False) for n in range(count)]
    return History("tiny", (*own, *committed))


def test_a_lone_record_gets_the_spread_of_the_others():
    history = pairs(5)
    lone = Record("lone", "lone", 100.0, HERE, True, False)
    spread = with_spread(History("tiny", (*history.records, lone)))
    # Ratios 0.5, 1.5, 2.5, 3.5, 4.5: p10 0.9, p90 4.1.
    assert spread.spread == pytest.approx((0.9, 4.1))
    found = predict(spread, "lone", "lone")
    assert (found.low, found.seconds, found.high) == pytest.approx((90.0, 100.0, 410.0))
    assert found.spread_from == "other jobs"


def test_too_few_pairs_say_nothing_about_a_spread():
    lone = Record("lone", "lone", 100.0, HERE, True, False)
    history = with_spread(History("tiny", (*pairs(4).records, lone)))
    found = predict(history, "lone", "lone")
    assert history.spread is None
    assert (found.low, found.high, found.spread_from) == (100.0, 100.0, "none")


times = st.floats(0, 1e6)
records = st.builds(
    Record,
    st.sampled_from(["a_1", "a_2", "b"]),
    st.sampled_from(["a", "b"]),
    times,
    st.sampled_from([HERE, "results/t", "cpu/t"]),
    st.booleans(),
    st.sampled_from([True, False, None]),
)


@given(st.lists(records, max_size=12), st.sampled_from([True, False, None]))
def test_a_prediction_lies_in_its_interval_and_in_no_other_device(found, gpu):
    history = with_spread(History("tiny", tuple(found)))
    prediction = predict(history, "a_1", "a", gpu)
    if prediction is None:
        fits = [r for r in found if r.job == "a_1" or r.rule == "a"]
        assert all(gpu is not None and r.gpu not in (gpu, None) for r in fits)
        return
    assert prediction.low <= prediction.seconds <= prediction.high
    assert gpu is None or all(r.gpu in (gpu, None) for r in prediction.records)


@given(
    st.one_of(st.none(), times),
    st.integers(1, 1000),
    st.integers(1, 5),
    st.floats(1, 10),
    st.integers(1, 60),
)
def test_minutes_stay_below_what_grows_from_the_limit(seconds, limit, attempt, factor, minimum):
    record = Record("a", "a", seconds or 0.0, HERE, True)
    known = predict(History("tiny", (record,)), "a", "a") if seconds is not None else None
    asked = [runtime_minutes(known, limit, n, factor, minimum) for n in (attempt, attempt + 1)]
    assert 1 <= asked[0] <= limit * 2 ** (attempt - 1)
    assert asked[1] >= 2 * asked[0]
    if known is None or attempt > 2:
        assert asked[0] == limit * 2 ** (attempt - 1)
    if known and attempt == 1 and asked[0] < limit:
        assert asked[0] >= minimum
        assert asked[0] * 60 >= seconds * factor


def test_minutes_by_hand():
    known = predict(History("tiny", (Record("a", "a", 187.0, HERE, True),)), "a", "a")
    # 187 s x 3 = 9.35 minutes.
    assert [runtime_minutes(known, 30, n, 3.0, 5) for n in (1, 2, 3)] == [10, 20, 120]
    assert runtime_minutes(known, 30, 1, 1.0, 5) == 5
    assert runtime_minutes(known, 8, 1, 3.0, 5) == 8
    assert [runtime_minutes(None, 30, n, 3.0, 5) for n in (1, 2, 3)] == [30, 60, 120]


@given(st.lists(times, min_size=1, max_size=9), st.floats(0, 1))
def test_quantiles_lie_between_the_ends(values, share):
    assert min(values) <= quantile(values, share) <= max(values) + 1e-9 * max(values)
    assert quantile(values, 0.0) == min(values)
    assert quantile(values, 1.0) == max(values)


def test_the_rules_of_this_workflow_are_found():
    names = rule_names(source_root())
    assert {"all", "train_model", "build_corpus", "plot_fig3"} <= set(names)


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
