"""Copies of each way to keep the cache, counted by hand; and what counts as a gain."""

import pytest

from ember.studies.streaming.ceiling.measure import time_caches
from ember.studies.streaming.ceiling.summary import summarise_caches
from ember.studies.streaming.ceiling.tables import CEILING_RUNS
from tests.rows import example
from tests.tiny import declared

PEAK = 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return time_caches(
        model=declared(tmp_path_factory.mktemp("m") / "m", "gpt_neox"),
        peak=PEAK,
        tokens=32,
        intervals=[1, 8],
        warmup=0,
        repeats=2,
        device="cpu",
        dtype="float32",
        seed=1,
    )


def test_copies_are_counted(runs):
    tokens = {
        (row["kind"], row["compression_interval"]): row["copied_bytes"] / row["kv_bytes"]
        for row in runs
    }
    assert tokens["slice_cat", 1] == 2 * (PEAK - 1)
    assert tokens["roll", 1] == 2 * PEAK
    # Keys twice and values, of all after the sinks; and the sinks' keys rotated anew.
    assert tokens["shift", 1] == 1.5 * (PEAK - 5) + 0.5 * 4
    assert tokens["shift", 8] == (1.5 * (PEAK - 12) + 0.5 * 4) / 8
    wraps = 1  # in 32 tokens, with 16 spare
    assert tokens["ring", 1] == pytest.approx(2 * 4 + 1.5 * wraps * (PEAK - 1) / 32)


def test_a_gain_must_be_stable():
    def row(kind, ms, repeat):
        return example(CEILING_RUNS, kind=kind, cache_ms=ms, repeat=repeat)

    rows = [row("slice_cat", 1.0, 0), row("slice_cat", 1.2, 1), row("roll", 0.5, 0)]
    rows += [row("roll", 1.1, 1), row("ring", 0.5, 0), row("ring", 0.6, 1)]
    found = {one["kind"]: one["verdict"] for one in summarise_caches(rows, noise=0.01)}
    assert found["ring"] == "stable gain"
    assert found["roll"].startswith("negative result")


def test_floors_are_those_of_pythia():
    """The numbers of S-5: 2.8 billion weights in half precision, 2048 tokens, 4.39 TB/s."""
    token = 2 * 32 * 2560 * 2
    about = {"kv_bytes": token, "peak": 2048, "weight_bytes": 5_290_000_000, "cache_ms": 1.0}
    about |= {"read_gb_s": 4390.0, "copy_gb_s": 4300.0, "last_cache": 60_000_000}
    copies = {"append_cat": 2047, "slice_cat": 2 * 2047, "ring": 9}
    rows = [
        example(CEILING_RUNS, kind=kind, copied_bytes=float(tokens * token), **about)
        for kind, tokens in copies.items()
    ]
    found = {one["kind"]: one for one in summarise_caches(rows, noise=0.01)}
    floors = {kind: one["token_floor_ms"] for kind, one in found.items()}
    assert floors["ring"] == pytest.approx(1.36, abs=0.01)
    assert floors["append_cat"] == pytest.approx(1.66, abs=0.01)
    assert floors["slice_cat"] == pytest.approx(1.97, abs=0.01)
    assert found["slice_cat"]["share"] == pytest.approx(4 * 2047 * token / 4300e6)
    small = [dict(row, last_cache=10**10) for row in rows]
    assert {one["token_floor_ms"] for one in summarise_caches(small, noise=0.01)} == {None}
