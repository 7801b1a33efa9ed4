"""The sweep on a small model for real, its summary, and what it says where it cannot run."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.records.tables import read_rows, write_table
from ember.studies.p1.pipeline.figure import busy_share
from ember.studies.p1.pipeline.measure import profile_layers, sweep_splits
from ember.studies.p1.pipeline.summary import summarise_pipeline
from ember.studies.p1.pipeline.tables import (
    LAYER_COSTS,
    PIPELINE,
    PIPELINE_EVENTS,
    PIPELINE_RUNS,
)
from ember.studies.p1.profile.stages import profile_stages
from ember.studies.p1.profile.summary import prefill_share
from ember.studies.p1.profile.tables import PREFILL_SHARE, ROLLOUT_PROFILE

SHAPE = {
    "context": 12,
    "generation": 4,
    "sequences": 4,
    "micro_batches": 2,
    "chunks": 1,
    "timeout": 120.0,
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
}
SWEEP = SHAPE | {"split_fractions": [0.25, 0.5, 0.75], "warmup": 1, "repeats": 2}


@pytest.fixture(scope="module")
def workload(random_model):
    from ember.studies.p1.workload.make import make_workload

    return make_workload(model=random_model, documents=3, tokens=24, seed=0)


@pytest.fixture(scope="module")
def measured(random_model, workload):
    """Costs, runs and events of a small model."""
    costs = profile_layers(model=random_model, cost_repeats=2, **SHAPE)
    return costs, *sweep_splits(model=random_model, workload=workload, **SWEEP)


def test_a_sweep_is_complete_and_its_tokens_are_those_of_one_device(measured, tmp_path):
    costs, runs, events = measured
    write_table(tmp_path / "costs.parquet", costs, LAYER_COSTS)
    write_table(tmp_path / "runs.parquet", runs, PIPELINE_RUNS)
    write_table(tmp_path / "events.parquet", events, PIPELINE_EVENTS)
    points = {"1+1-overlap", "1+1-no_overlap", "single"}
    assert {(row["point"], row["repeat"]) for row in runs} == {
        (p, r) for p in points for r in (0, 1)
    }
    assert {row["tokens_equal_share"] for row in runs} == {1.0}
    for row in runs:
        assert row["tokens_per_s"] == pytest.approx(16 / row["total_ms"] * 1e3)
        if row["mode"] != "single":
            busy = row["busy_first_ms"] + row["busy_last_ms"]
            assert row["bubble_share"] == pytest.approx(1 - busy / (2 * row["total_ms"]))
            assert 0 < row["prefill_ms"] < row["total_ms"]
    assert {event["point"] for event in events} == points - {"single"}


def test_the_summary_compares_predicts_and_says_what_is_best(measured, tmp_path):
    costs, runs, _ = measured
    path = write_table(tmp_path / "p.parquet", summarise_pipeline(runs, costs), PIPELINE)
    rows = {row["point"]: row for row in read_rows(path, PIPELINE)}
    staged = [rows["1+1-overlap"], rows["1+1-no_overlap"]]
    assert sorted(row["standing"] for row in staged)[0] == "best"
    for row in staged:
        assert row["predicted_to_measured"] == pytest.approx(
            row["predicted_tokens_per_s"] / row["tokens_per_s_median"]
        )
        assert row["speedup_to_single"] == pytest.approx(
            row["tokens_per_s_median"] / rows["single"]["tokens_per_s_median"]
        )
    assert rows["1+1-overlap"]["predicted_best_split"] == "1+1"
    assert rows["1+1-overlap"]["predicted_best"] is True
    assert rows["1+1-no_overlap"]["predicted_best"] is None
    assert {row["delta_to_anchor"] for row in rows.values()} == {None}


def test_an_earlier_run_gives_deltas_where_it_is_the_same_workload(measured):
    costs, runs, _ = measured
    earlier = summarise_pipeline(runs, costs)
    for row in earlier:
        if row["n"]:
            row["tokens_per_s_median"] *= 2
    earlier[0]["micro_batches"] = 3
    rows = summarise_pipeline(runs, costs, earlier[:-1])
    assert rows[0]["delta_to_anchor"] is None
    assert rows[0]["anchor_note"] == "the anchor differs: micro_batches 3"
    assert rows[1]["delta_to_anchor"] == pytest.approx(-0.5)
    assert rows[1]["anchor_note"] is None
    assert rows[2]["anchor_note"] == "the anchor has no such point"


def test_rollouts_on_two_stages_join_the_profile(random_model, workload, tmp_path):
    rows = profile_stages(
        model=random_model,
        workload=workload,
        contexts=[8, 24],
        generations=[2, 5],
        split_fraction=0.5,
        chunks=4,
        warmup=0,
        repeats=2,
        timeout=120.0,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    path = write_table(tmp_path / "stages.parquet", rows, ROLLOUT_PROFILE)
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert min(row["prefill_ms"], row["decode_ms"], row["sampling_ms"]) > 0
        parts = row["prefill_ms"] + row["decode_ms"] + row["sampling_ms"]
        assert parts <= row["total_ms"]
        assert row["tokens_per_s"] == pytest.approx(row["generation"] / row["total_ms"] * 1e3)
    share = prefill_share(path)
    write_table(tmp_path / "share.parquet", share, PREFILL_SHARE)
    assert {row["mode"] for row in share} == {"two_stage_overlap", "two_stage_serial"}
    assert all(0 < row["prefill_share_median"] < 1 for row in share)


def test_with_one_gpu_every_row_is_skipped_with_the_reason(random_model, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpu = {"device": "cuda", "dtype": "bfloat16"}
    costs = profile_layers(model=random_model, cost_repeats=2, **SHAPE | on_gpu)
    runs, events = sweep_splits(model=random_model, workload="unread", **SWEEP | on_gpu)
    stages = profile_stages(
        model=random_model,
        workload="unread",
        contexts=[8],
        generations=[2],
        split_fraction=0.5,
        chunks=4,
        warmup=0,
        repeats=1,
        timeout=1.0,
        seed=0,
        **on_gpu,
    )
    reasons = {row["reason"] for row in [*costs, *runs, *stages]}
    assert reasons == {"two stages need two GPUs, 1 visible to the job"}
    assert {row["status"] for row in [*costs, *runs, *stages]} == {"skipped"}
    write_table(tmp_path / "costs.parquet", costs, LAYER_COSTS)
    write_table(tmp_path / "runs.parquet", runs, PIPELINE_RUNS)
    write_table(tmp_path / "events.parquet", events, PIPELINE_EVENTS)
    write_table(tmp_path / "stages.parquet", stages, ROLLOUT_PROFILE)
    rows = summarise_pipeline(tmp_path / "runs.parquet", tmp_path / "costs.parquet")
    write_table(tmp_path / "pipeline.parquet", rows, PIPELINE)
    assert {row["n"] for row in rows} == {0}
    assert len(rows) == 3


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=8),
    st.floats(0.1, 4.0),
)
def test_the_share_of_busy_time_is_that_of_the_spans(gaps_and_lengths, width):
    """Against a sum over all pairs of spans and stretches."""
    starts, ends, now = [], [], 0.0
    for gap, length in gaps_and_lengths:
        starts.append(now + gap)
        now = starts[-1] + length
        ends.append(now)
    edges = np.arange(starts[0], now + width, width)
    share = busy_share(np.array(starts), np.array(ends), edges)
    for found, (low, high) in zip(share, itertools.pairwise(edges), strict=True):
        inside = sum(
            max(0.0, min(e, high) - max(s, low)) for s, e in zip(starts, ends, strict=True)
        )
        assert found == pytest.approx(inside / width, abs=1e-6)
