"""The prefix sweep: pairs, reuse as asked for, equal logits; savings against closed forms."""

import json

import numpy as np
import pytest

from ember.model.architecture import Architecture
from ember.records.errors import BadRow
from ember.records.tables import write_table
from ember.studies.p1.prefix.measure import prefix_lengths, sweep_prefix
from ember.studies.p1.prefix.summary import (
    expected_savings,
    join_sweep,
    prefix_savings,
)
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS, PREFIX_SWEEP
from ember.studies.p1.workload.make import make_workload
from tests.rows import example


@pytest.fixture
def arch(random_model):
    return Architecture.from_hf(json.loads((random_model / "config.json").read_text()))


def pair(document, uncached, cached, difference=0.0, equal=True):
    common = {"prompt_tokens": 100, "prefix_tokens": 50, "document": document, "top_margin": 0.02}
    reused = {"tokens_equal": equal, "max_logit_diff": difference, "reused_tokens": 50}
    return [
        example(PREFIX_SWEEP, cached=False, prefill_ms=uncached, reused_tokens=0, **common)
        | {"lookup_ms": 0.0, "store_ms": 0.0},
        example(PREFIX_SWEEP, cached=True, prefill_ms=cached, **common, **reused)
        | {"lookup_ms": 0.0, "store_ms": 0.0},
    ]


def sweep(model, documents, **more):
    return sweep_prefix(
        model=model,
        workload=make_workload(model=model, documents=documents, tokens=48, seed=0),
        documents=documents,
        prompts=[32, 48],
        prefix_fractions=[0.25, 0.5],
        warmup=1,
        budget_mb=0.2,
        tolerance=1e-4,
        device="cpu",
        dtype="float32",
        seed=0,
        **more,
    )


def test_sweep_pairs_every_document_and_reuses_the_prefix(random_model, tmp_path):
    rows = sweep(random_model, 3)
    write_table(tmp_path / "sweep.parquet", rows, PREFIX_SWEEP)
    assert len(rows) == 4 * 3 * 2
    assert sorted(row["order"] for row in rows) == list(range(len(rows)))
    for row in rows:
        assert row["reused_tokens"] == (row["prefix_tokens"] if row["cached"] else 0)
        assert row["prefill_ms"] > row["lookup_ms"] + row["store_ms"]
        assert (row["store_ms"] > 0) == row["cached"]
        if row["cached"]:
            assert row["tokens_equal"]
            assert row["max_logit_diff"] < 1e-4
    savings = prefix_savings(rows, model=random_model, tolerance=1e-4, seed=0, resamples=100)
    write_table(tmp_path / "savings.parquet", savings, PREFIX_SAVINGS)
    assert [(r["prompt_tokens"], r["prefix_tokens"]) for r in savings] == [
        (32, 8),
        (32, 16),
        (48, 12),
        (48, 24),
    ]
    assert all(row["within_tolerance"] for row in savings)


def test_shards_together_measure_every_document_once(random_model, tmp_path):
    paths = [tmp_path / f"{shard}.parquet" for shard in range(2)]
    for shard, path in enumerate(paths):
        write_table(path, sweep(random_model, 3, shard=shard, shards=2), PREFIX_SWEEP)
    rows = join_sweep(paths, documents=3)
    write_table(tmp_path / "sweep.parquet", rows, PREFIX_SWEEP)
    assert {(row["document"], row["shard"]) for row in rows} == {(0, 0), (1, 1), (2, 0)}
    assert len(rows) == 4 * 3 * 2
    with pytest.raises(BadRow, match=r"no measurement of documents \[1\]"):
        join_sweep(paths[:1], documents=3)
    with pytest.raises(BadRow, match="none of the 3 documents"):
        sweep(random_model, 3, shard=3, shards=4)


def test_savings_keep_the_pairs_together(random_model):
    # Documents differ tenfold in time, each saves exactly half: no interval between them.
    rows = [row for d in range(10) for row in pair(d, 10.0 * (d + 1), 5.0 * (d + 1))]
    [row] = prefix_savings(rows, model=random_model, tolerance=1e-3, seed=0, resamples=200)
    assert row["savings"] == row["savings_low"] == row["savings_high"] == pytest.approx(0.5)
    assert row["speedup"] == pytest.approx(2.0)
    assert row["documents"] == 10


def test_savings_interval_covers_the_median_and_follows_the_seed(random_model):
    rng = np.random.default_rng(0)
    rows = [row for d in range(20) for row in pair(d, 10.0, float(rng.uniform(4, 6)))]
    about = {"model": random_model, "tolerance": 1e-3, "resamples": 200}
    [row] = prefix_savings(rows, seed=1, **about)
    assert row["savings_low"] < row["savings"] < row["savings_high"]
    assert [row] == prefix_savings(rows, seed=1, **about)


@pytest.mark.parametrize(
    ("difference", "equal", "within"),
    [(0.0, True, True), (0.1, True, False), (0.001, False, False), (0.015, False, True)],
)
def test_a_difference_is_reported_and_excused_only_in_a_near_tie(
    random_model, difference, equal, within
):
    rows = pair(0, 2.0, 1.0) + pair(1, 2.0, 1.0, difference, equal)
    [row] = prefix_savings(rows, model=random_model, tolerance=0.02, seed=0, resamples=100)
    assert row["within_tolerance"] == within
    assert row["tokens_equal_share"] == (1.0 if equal else 0.5)
    assert row["near_ties_share"] == (0.5 if 2 * difference >= 0.02 else 0.0)
    assert row["max_logit_diff"] == difference


def test_expected_savings_lie_between_the_area_and_the_tokens(arch):
    for tokens, reused in [(64, 16), (64, 32), (4096, 2048), (4096, 1)]:
        expected = expected_savings(arch, tokens, reused)
        pairs = reused * (reused + 1) / (tokens * (tokens + 1))
        assert pairs < expected < reused / tokens
    assert expected_savings(arch, 64, 0) == 0.0


def test_prefix_lengths_leave_a_suffix():
    assert prefix_lengths(2048, [0.5, 0.25]) == [512, 1024]
    assert prefix_lengths(2, [0.01, 0.99]) == [1]
