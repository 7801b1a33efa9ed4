"""The rollout profile: phases add up, points are complete, shares come from the rows alone."""

import numpy as np
import pytest

from ember.records.tables import read_table, write_table
from ember.studies.p1.profile.measure import profile_rollout
from ember.studies.p1.profile.summary import prefill_share
from ember.studies.p1.profile.tables import PREFILL_SHARE, ROLLOUT_PROFILE
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT, point_name
from tests.rows import example


def rollout(repeat, prefill, decode, **changes):
    row = dict.fromkeys(ROLLOUT_PROFILE.names)
    row |= {
        "point": "single-64-8",
        "mode": "single",
        "context": 64,
        "generation": 8,
        "batch": 1,
        "repeat": repeat,
        "prefill_ms": prefill,
        "decode_ms": decode,
        "sampling_ms": 1.0,
        "transfer_ms": 0.0,
        "total_ms": prefill + decode + 1.0,
        "tokens_per_s": 8e3 / (prefill + decode + 1.0),
        "device": "cpu",
        "dtype": "float32",
        "model": "m",
        "weights": "random",
        "evidence": "measured",
        "status": "ok",
    }
    return row | changes


SKIPPED = {
    "point": "two_stage_serial-64-8",
    "mode": "two_stage_serial",
    "status": "skipped",
    "reason": "one device",
    **dict.fromkeys(
        ("prefill_ms", "decode_ms", "sampling_ms", "transfer_ms", "total_ms", "tokens_per_s")
    ),
}


def test_the_share_is_taken_within_each_rollout():
    rows = [rollout(0, 1.0, 2.0), rollout(1, 3.0, 4.0), rollout(2, 5.0, 2.0)]
    [share] = prefill_share(rows)
    assert share["n"] == 3
    assert share["prefill_share_median"] == pytest.approx(np.median([1 / 4, 3 / 8, 5 / 8]))
    assert (share["prefill_share_min"], share["prefill_share_max"]) == (1 / 4, 5 / 8)
    assert share["prefill_share_p90"] is None, "of fewer than ten runs there is no percentile"
    assert share["prefill_ms_median"] == 3.0
    assert share["decode_ms_mean"] == pytest.approx(8 / 3)
    assert share["total_ms_std"] == pytest.approx(np.std([4, 8, 8], ddof=1))


def test_skipped_points_stay_with_their_reason(tmp_path):
    rows = [rollout(0, 1.0, 2.0), rollout(0, 1.0, 2.0, **SKIPPED)]
    profile = write_table(tmp_path / "profile.parquet", rows, ROLLOUT_PROFILE)
    path = write_table(tmp_path / "share.parquet", prefill_share(profile), PREFILL_SHARE)
    frame = read_table(path, PREFILL_SHARE).set_index("point")
    assert frame.loc["single-64-8", "n"] == 1
    assert np.isnan(frame.loc["single-64-8", "prefill_ms_std"])
    skipped = frame.loc["two_stage_serial-64-8"]
    assert (skipped["n"], skipped["status"], skipped["reason"]) == (0, "skipped", "one device")
    assert np.isnan(skipped["prefill_share_median"])


def test_calls_of_the_batch_stand_beside_one_rollout():
    call = {"prompts": 4, "candidates": 2, "rows": 6, "context": 64, "prefix": 0, "generation": 8}
    call |= {"point": point_name(call), "prefill_ms": 3.0, "total_ms": 4.0}
    calls = [
        example(ROLLOUT_THROUGHPUT, **call),
        example(ROLLOUT_THROUGHPUT, **call | {"repeat": 1, "prefill_ms": 2.0}),
        example(ROLLOUT_THROUGHPUT, **call | {"prefix": 16, "point": "shared"}),
    ]
    alone, batched = prefill_share([rollout(0, 1.0, 2.0)], throughput=calls)
    assert (alone["mode"], alone["batch"], alone["prompts"]) == ("single", 1, 1)
    assert (batched["mode"], batched["batch"], batched["n"]) == ("batched", 6, 2)
    assert (batched["point"], batched["candidates"]) == ("4x2 in 6, 64/8", 2)
    assert batched["prefill_share_median"] == pytest.approx(5 / 8)
    assert (batched["prefill_share_min"], batched["prefill_share_max"]) == (1 / 2, 3 / 4)


def test_profile_of_a_small_model_is_complete(random_model, tmp_path):
    from ember.studies.p1.workload.make import make_workload

    workload = make_workload(model=random_model, documents=3, tokens=24, seed=0)
    rows = profile_rollout(
        model=random_model,
        workload=workload,
        contexts=[8, 24],
        generations=[2, 5],
        warmup=1,
        repeats=2,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    write_table(tmp_path / "profile.parquet", rows, ROLLOUT_PROFILE)
    single = [row for row in rows if row["mode"] == "single"]
    points = {(row["context"], row["generation"], row["repeat"]) for row in single}
    assert points == {(c, g, r) for c in (8, 24) for g in (2, 5) for r in (0, 1)}
    for row in single:
        phases = [row[f"{phase}_ms"] for phase in ("prefill", "decode", "sampling", "transfer")]
        assert min(phases[:3]) > 0
        assert sum(phases) <= row["total_ms"]
        assert row["tokens_per_s"] == pytest.approx(row["generation"] / row["total_ms"] * 1e3)
        assert row["weights"] == "random"
    assert len(single) == len(rows)  # two stages have a job of their own
    assert len(prefill_share(rows)) == 4
