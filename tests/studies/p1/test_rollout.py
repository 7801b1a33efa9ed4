"""Continuous batching measured, a rollout compared with itself, and completions of a file."""

import json
import sys

import pytest

from ember.backends.sampling import SamplingParams
from ember.commands.generate import generate, read_prompts, write_jsonl
from ember.engine.stats import RolloutStats, StepBatch
from ember.measure.cost import parameters_read
from ember.model.checkpoint import load_decoder
from ember.records.errors import EmberError
from ember.records.tables import read_rows, read_table, write_table
from ember.studies.p1.completions.tables import COMPLETIONS
from ember.studies.p1.consistency.measure import check_consistency, compare
from ember.studies.p1.consistency.tables import ROLLOUT_CONSISTENCY
from ember.studies.p1.rollout.figure import draw
from ember.studies.p1.rollout.measure import (
    longer_ms,
    measure_rollouts,
)
from ember.studies.p1.rollout.summary import summarise_rollouts
from ember.studies.p1.rollout.tables import (
    ROLLOUT_SPEED,
    ROLLOUT_THROUGHPUT,
)
from ember.studies.p1.workload.make import make_workload
from tests.rows import frame

RUNTIME = {"device": "cpu", "dtype": "float32", "seed": 0}
LENGTHS = {"context": 12, "prefix": 4, "generation": 5, "repeats": 2}
POINTS = [
    LENGTHS | {"prompts": 3, "candidates": 2, "rows": 2},
    LENGTHS | {"prompts": 3, "candidates": 2, "rows": 6},
    {"context": 8, "prefix": 0, "generation": 3, "repeats": 1}
    | {"prompts": 2, "candidates": 1, "rows": 2},
]


@pytest.fixture(scope="module")
def throughput(random_model):
    workload = make_workload(model=random_model, documents=3, tokens=12, seed=0)
    return measure_rollouts(
        model=random_model, workload=workload, points=POINTS, warmup=1, **RUNTIME
    )


def test_every_call_is_a_row_with_its_limit(throughput, tmp_path):
    write_table(tmp_path / "throughput.parquet", throughput, ROLLOUT_THROUGHPUT)
    assert [(row["point"], row["repeat"]) for row in throughput] == [
        ("2x1 in 2, 8/3", 0),
        *((f"3x2 in {rows}, 12/5, 4 shared", repeat) for rows in (2, 6) for repeat in (0, 1)),
    ]
    alone, few, _, many, _ = throughput
    assert (alone["prefills"], alone["prefix_hits"], alone["generated_tokens"]) == (2, 0, 6)
    assert (few["steps"], many["steps"]) == (12, 4)
    assert (few["batch"], many["batch"]) == (2, 6)
    for row in throughput[1:]:
        assert row["generated_tokens"] == 3 * 2 * 5
        assert (row["prefills"], row["prefix_hits"], row["cached_tokens"]) == (3, 2, 8)
    for row in throughput:
        assert row["occupancy"] == 1.0
        assert row["peak_gb"] is None  # a CPU's allocator does not count
        phases = [row[f"{phase}_ms"] for phase in ("prefill", "decode", "sampling", "transfer")]
        assert min(phases) > 0
        assert sum(phases) <= row["total_ms"]
        steps = row["decode_ms"] + row["sampling_ms"]
        assert row["share"] == pytest.approx(row["limit_ms"] / steps)
        read = row["steps"] * (row["weight_bytes"] + row["kv_bytes"])
        assert row["limit_ms"] == pytest.approx(read / row["read_gb_s"] / 1e6)
        assert row["roofline_ms"] >= row["limit_ms"] * (1 - 1e-9)
        assert row["roofline_share"] == pytest.approx(row["roofline_ms"] / steps)
    token = 2 * 2 * 2 * 8 * 4
    assert few["kv_bytes"] == (12 + 2 * 2.5) * token  # one prompt, two rows with 1 … 4 tokens
    assert many["kv_bytes"] == (3 * 12 + 6 * 2.5) * token


@pytest.mark.parametrize(
    ("rows", "tflops"),
    [(1, 1.0), (1000, 0.45), (1000, 0.01)],  # reads; the products' operations; all operations
)
def test_the_longer_of_reads_and_operations_is_the_limit(random_model, rows, tflops):
    decoder = load_decoder(random_model)
    weights, steps, prompt, own = parameters_read(decoder.arch), 3, 10, 7
    stats = RolloutStats(batches=[StepBatch(rows, 2, prompt, steps=steps, own_tokens=own)])
    # At 1 GB/s; of two layers, two KV heads of dimension 8 and four heads, in float32.
    reads = steps * weights * 4 / 1e6, (steps * prompt + own) * 2 * 2 * 2 * 8 * 4 / 1e6
    attended = steps * rows * prompt / 2 + own
    operations = 2 * steps * rows * weights, attended * 2 * 2 * 2 * 4 * 8
    times = (max(r, o / tflops / 1e9) for r, o in zip(reads, operations, strict=True))
    assert longer_ms(decoder, stats, 1.0, tflops) == pytest.approx(sum(times))
    longer = [o / tflops / 1e9 > r for r, o in zip(reads, operations, strict=True)]
    assert longer == [tflops < 1, tflops < 0.1]


def test_the_summary_and_its_figure(throughput, tmp_path):
    rows = summarise_rollouts(throughput)
    path = write_table(tmp_path / "speed.parquet", rows, ROLLOUT_SPEED)
    assert [(row["point"], row["n"]) for row in rows] == [
        ("2x1 in 2, 8/3", 1),
        ("3x2 in 2, 12/5, 4 shared", 2),
        ("3x2 in 6, 12/5, 4 shared", 2),
    ]
    for row in rows:
        assert row["decode_tokens_per_s_median"] < row["limit_tokens_per_s"] / row["share_min"]
        assert row["roofline_tokens_per_s"] <= row["limit_tokens_per_s"] * (1 + 1e-9)
        calls = [call for call in throughput if call["point"] == row["point"]]
        shares = [call["prefill_ms"] / call["total_ms"] for call in calls]
        assert (row["prefill_share_min"], row["prefill_share_max"]) == (min(shares), max(shares))
    figure, caption = draw(read_table(path, ROLLOUT_SPEED), "smoke")
    [axes] = figure.axes  # one number of candidates only at these lengths
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "6"]
    tops = {bar.get_x(): bar.get_y() + bar.get_height() for bar in axes.patches}
    wholes = [row["total_ms_median"] / 1e3 for row in rows[1:]]
    assert list(tops.values()) == pytest.approx(wholes, rel=0.05)  # phases' medians, not the calls'
    assert "supports a claim" in caption


def test_candidates_have_a_panel_where_they_vary():
    lengths = {"context": 64, "prefix": 0, "generation": 8, "total_ms_median": 5.0}
    points = [(8, 8, 4), (8, 8, 8), (8, 8, 16), (64, 1, 8), (32, 2, 8)]
    names = ("prompts", "candidates", "rows")
    rows = [lengths | dict(zip(names, point, strict=True)) for point in points]
    rows.append(rows[0] | {"context": 128})
    figure, caption = draw(frame(ROLLOUT_SPEED, rows), "tiny")
    found = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert found == [["4", "8", "16"], ["1", "2", "8"]]
    assert "candidates of a prompt" in caption


@pytest.mark.slow
def test_a_rollout_is_consistent(random_model, tmp_path):
    workload = make_workload(model=random_model, documents=3, tokens=12, seed=0)
    settings = {"prompts": 3, "candidates": 2, "prompt_tokens": 12, "new_tokens": 5, "rows": 4}
    rows = check_consistency(
        model=random_model, workload=workload, tolerance=1e-4, **settings, **RUNTIME
    )
    write_table(tmp_path / "consistency.parquet", rows, ROLLOUT_CONSISTENCY)
    assert len(rows) == 3 * 8
    assert all(row["holds"] for row in rows)
    exact = [row for row in rows if row["tolerance"] == 0]
    assert {row["check"] for row in exact} == {
        "rerun",
        "invariant, other batch composition",
        "invariant, alone",
    }
    assert all(row["max_logprob_diff"] == 0 for row in exact)


def test_without_transformers_its_checks_are_skipped(random_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    workload = make_workload(model=random_model, documents=1, tokens=6, seed=0)
    settings = {"prompts": 1, "candidates": 2, "prompt_tokens": 6, "new_tokens": 3, "rows": 2}
    rows = check_consistency(
        model=random_model, workload=workload, tolerance=1e-4, **settings, **RUNTIME
    )
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert [row["check"] for row in skipped] == ["transformers"] * 3
    assert all("not installed" in row["reason"] for row in skipped)


def test_differences_are_seen(random_model):
    params = SamplingParams(n=2, max_tokens=6, temperature=1.0)
    arguments = {"model": random_model, "prompts": [[1, 2], [3]], "device": "cpu"}
    from ember.engine.engine import Engine
    from ember.model.checkpoint import load_decoder

    engine = Engine(load_decoder(random_model, "cpu"), capacity=8)
    one = engine.generate(arguments["prompts"], params)
    other = engine.generate(arguments["prompts"], SamplingParams(n=2, max_tokens=6))
    found = compare(one, other)
    assert found["token_mismatches"] > 0
    assert compare(one, one) == {
        "candidates": 4,
        "tokens": 24,
        "token_mismatches": 0,
        "max_logprob_diff": 0.0,
        "max_sampled_logprob_diff": 0.0,
    }


def test_completions_of_token_ids_are_a_table(random_model, tmp_path):
    prompts = [[1, 2, 3], [4, 5]]
    params = SamplingParams(n=3, max_tokens=4, temperature=1.0, stop_token_ids=(7,))
    rows, stats = generate(
        model=random_model, prompts=prompts, sampling=params, device="cpu", dtype="float32"
    )
    path = write_table(tmp_path / "completions.parquet", rows, COMPLETIONS)
    back = read_rows(path, COMPLETIONS)
    assert [(row["prompt"], row["candidate"]) for row in back] == [
        (p, c) for p in range(2) for c in range(3)
    ]
    for row in back:
        assert row["prompt_tokens"] == prompts[row["prompt"]]
        assert row["text"] is None
        assert len(row["tokens"]) == len(row["logprobs"]) == len(row["raw_logprobs"])
        assert row["weights_versions"] == f"basex{len(row['tokens'])}"
    assert stats["generated_tokens"] == sum(len(row["tokens"]) for row in back)
    lines = write_jsonl(tmp_path / "completions.jsonl", rows).read_text().splitlines()
    assert [json.loads(line) for line in lines] == back


def test_prompts_are_read_from_every_form(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = tmp_path / "prompts.txt"
    text.write_text("one\ntwo\n")
    assert read_prompts(text) == ["one", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "one"}\n{"tokens": [1, 2]}\n')
    assert read_prompts(lines) == ["one", [1, 2]]
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"tokens": [[1], [2, 3]]}), table)
    assert read_prompts(table) == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', 'line 2: give "prompt"'),
        ("prompts.jsonl", "{\n", "line 1(.|\n)*one JSON object a line"),
        ("prompts.parquet", "no table", "Parquet"),
        ("prompts.txt", None, "UTF-8 text file"),
    ],
)
def test_a_bad_file_of_prompts_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(EmberError, match=message):
        read_prompts(path)
