"""The prefix sweep: balanced pairs, reuse as asked for, equal logits; savings and their losses
against closed forms."""

import json

import numpy as np
import pytest

from ember.measure.cost import prefill_operations
from ember.model.architecture import Architecture
from ember.records.errors import BadRow
from ember.records.tables import write_table
from ember.studies.p1.prefix.measure import check_identity, prefix_lengths, sweep_prefix
from ember.studies.p1.prefix.summary import (
    expected_savings,
    join_sweep,
    prefix_losses,
    prefix_savings,
)
from ember.studies.p1.prefix.tables import (
    PREFIX_IDENTITY,
    PREFIX_LOSSES,
    PREFIX_SAVINGS,
    PREFIX_SWEEP,
)
from ember.studies.p1.workload.make import make_workload
from tests.rows import example


@pytest.fixture
def arch(random_model):
    return Architecture.from_hf(json.loads((random_model / "config.json").read_text()))


def pair(document, uncached, cached, difference=0.0, equal=True):
    common = {"prompt_tokens": 100, "prefix_tokens": 50, "document": document}
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


@pytest.mark.parametrize(("difference", "within"), [(0.0, True), (0.015, True), (0.1, False)])
def test_timed_runs_are_held_to_the_tolerance_of_their_logits(random_model, difference, within):
    rows = pair(0, 2.0, 1.0) + pair(1, 2.0, 1.0, difference, equal=not difference)
    [row] = prefix_savings(rows, model=random_model, tolerance=0.02, seed=0, resamples=100)
    assert row["within_tolerance"] == within
    assert row["tokens_equal_share"] == (0.5 if difference else 1.0)
    assert row["max_logit_diff"] == difference
    assert row["float32_documents"] is None, "no table of the check in float32 was given"


def test_first_tokens_are_the_same_in_float32(random_model, tmp_path):
    workload = make_workload(model=random_model, documents=2, tokens=48, seed=0)
    lengths = {"prompts": [32, 48], "prefix_fractions": [0.5]}
    rows = check_identity(
        model=random_model,
        workload=workload,
        documents=2,
        budget_mb=0.2,
        runtime={"device": "cpu", "dtype": "bfloat16", "seed": 0},
        **lengths,
    )
    write_table(tmp_path / "identity.parquet", rows, PREFIX_IDENTITY)
    assert [(row["prompt_tokens"], row["document"]) for row in rows] == [
        (32, 0),
        (32, 1),
        (48, 0),
        (48, 1),
    ]
    assert all(row["tokens_equal"] and row["dtype"] == "float32" for row in rows)
    assert all(row["reused_tokens"] == row["prefix_tokens"] for row in rows)
    identity = [row | {"prompt_tokens": 100, "prefix_tokens": 50} for row in rows[:2]]
    identity[1]["tokens_equal"] = False
    about = {"model": random_model, "tolerance": 0.02, "seed": 0, "resamples": 100}
    [row] = prefix_savings(pair(0, 2.0, 1.0), identity, **about)
    assert (row["float32_documents"], row["float32_tokens_equal_share"]) == (2, 0.5)


def test_who_goes_first_alternates_at_every_point(random_model):
    rows = [row for shard in (0, 1) for row in sweep(random_model, 6, shard=shard, shards=2)]
    by_point = {}
    for row in sorted(rows, key=lambda row: row["document"]):
        if row["first"]:
            point = row["prompt_tokens"], row["prefix_tokens"], row["shard"]
            by_point.setdefault(point, []).append(row["cached"])
    assert len(by_point) == 4 * 2
    for firsts in by_point.values():
        assert firsts in ([True, False, True], [False, True, False])
    by_order = {(row["shard"], row["order"]): row for row in rows}
    for (shard, order), row in by_order.items():
        assert row["first"] == (order % 2 == 0)
        other = by_order[shard, order ^ 1]
        assert (other["document"], other["cached"]) == (row["document"], not row["cached"])
    about = {"model": random_model, "tolerance": 1e-4, "seed": 0, "resamples": 100}
    for row in prefix_savings(rows, **about):
        assert row["cached_first_share"] == 0.5


def test_an_advantage_of_going_first_is_seen_in_the_order(random_model):
    rows = [row for d in range(4) for row in pair(d, 10.0, 4.0 if d % 2 else 6.0)]
    for row in rows:
        row["first"] = row["cached"] == bool(row["document"] % 2)
    [row] = prefix_savings(rows, model=random_model, tolerance=1e-3, seed=0, resamples=100)
    assert row["order_effect"] == pytest.approx(0.2)
    assert row["savings"] == pytest.approx(0.5), "balanced, it moves the median of none"
    expected = row["expected_with_attention"]
    assert row["ratio_to_operations"] == pytest.approx(0.5 / expected)
    assert row["ratio_low"] == pytest.approx(row["savings_low"] / expected)


def test_losses_add_up_to_the_cached_prefill(random_model, arch, tmp_path):
    def point(n, p, document, uncached, cached):
        lengths = {"prompt_tokens": n, "prefix_tokens": p}
        plain, reused = (row | lengths for row in pair(document, uncached, cached))
        return [plain, reused | {"lookup_ms": 0.3, "store_ms": 0.2}]

    rows = [row for d in range(5) for row in point(64, 32, d, 10.0, 6.0)]
    rows += [row for d in range(5) for row in point(32, 8, d, 5.5, 5.0)]
    losses = prefix_losses(rows, model=random_model, seed=0, resamples=100)
    write_table(tmp_path / "losses.parquet", losses, PREFIX_LOSSES)
    half = {row["part"]: row["ms"] for row in losses if row["prompt_tokens"] == 64}
    assert list(half) == [
        "uncached",
        "operations",
        "products",
        "attention",
        "lookup",
        "store",
        "cached",
    ]
    assert half["uncached"] == 10.0
    assert half["operations"] == pytest.approx(-10 * expected_savings(arch, 64, 32))
    alone = prefill_operations(arch, 32).total / prefill_operations(arch, 64).total
    assert half["products"] == pytest.approx(5.5 - 10 * alone), "32 tokens alone take 5.5 ms"
    assert sum(half.values()) - half["cached"] == pytest.approx(half["cached"]) == 6.0
    # Nothing of 24 tokens was timed alone: what the suffix loses stays in one part.
    short = {row["part"]: row["ms"] for row in losses if row["prompt_tokens"] == 32}
    assert list(short) == ["uncached", "operations", "suffix", "lookup", "store", "cached"]
    assert sum(short.values()) == pytest.approx(2 * short["cached"])


def test_expected_savings_lie_between_the_area_and_the_tokens(arch):
    for tokens, reused in [(64, 16), (64, 32), (4096, 2048), (4096, 1)]:
        expected = expected_savings(arch, tokens, reused)
        pairs = reused * (reused + 1) / (tokens * (tokens + 1))
        assert pairs < expected < reused / tokens
    assert expected_savings(arch, 64, 0) == 0.0


def test_prefix_lengths_leave_a_suffix():
    assert prefix_lengths(2048, [0.5, 0.25]) == [512, 1024]
    assert prefix_lengths(2, [0.01, 0.99]) == [1]
