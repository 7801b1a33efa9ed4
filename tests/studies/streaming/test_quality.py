"""Paired differences, spikes, verdicts, ledger and front, on tables that are made up."""

import numpy as np
import pytest

from ember.studies.streaming.decisions.summary import decide_streaming
from ember.studies.streaming.diagnose.summary import summarise_latency
from ember.studies.streaming.diagnose.tables import LATENCY_RUNS, STREAMING_LATENCY
from ember.studies.streaming.matrix.summary import (
    judge_matrix,
    keep_ledger,
    list_programme,
    verdict,
)
from ember.studies.streaming.matrix.tables import STREAMING_MATRIX
from ember.studies.streaming.pareto.summary import find_front
from ember.studies.streaming.quality.summary import (
    boundaries,
    diagnose,
    since_prune,
    summarise_quality,
    summarise_spikes,
)
from ember.studies.streaming.quality.tables import QUALITY_RUNS, STREAMING_QUALITY
from ember.studies.streaming.sinks.summary import judge_sinks
from ember.studies.streaming.sinks.tables import SINK_GAP, SINK_MASS, STREAMING_GATE
from tests.rows import example

PEAK, TOKENS, STREAMS = 16, 200, 6
STEPS = [16 + 8 * n for n in range(23)]
BARS = {
    "interval": 8,
    "min_removed": 0.5,
    "max_tpot_ratio": 1.02,
    "max_ppl_long": 0.05,
    "max_ppl_short": 0.03,
    "noise": 0.01,
    "min_folded": 0.8,
    "max_fold_ratio": 1.01,
    "margin": 0.01,
}
SETTINGS = {"seed": 1, "resamples": 200}


def runs(point: str, above: float, method: str = "lazy_prune", **given) -> list[dict]:
    """Streams that lose `above` nats in the four steps after each prune, beyond R = 1's loss."""
    noise = np.random.default_rng(3)
    found = []
    for stream in range(STREAMS):
        nll = 2 + stream + noise.normal(0, 1, TOKENS - 1)  # the same noise for every point
        nll[[s + n for s in STEPS for n in range(4) if s + n < TOKENS - 1]] += above
        row = {
            "corpus": "long",
            "point": point,
            "method": method,
            "peak": PEAK,
            "compression_interval": 8,
            "stream": stream,
            "nll": nll.tolist(),
            "drop_steps": STEPS,
            "drop_sizes": [8] * len(STEPS),
            "improves": "spike",
        }
        found.append(example(QUALITY_RUNS, **row | given))
    return found


REFERENCE = runs("streaming_llm-P16-R1", 0, "streaming_llm", compression_interval=1, n_sink=4)
LAZY = runs("lazy_prune-P16-R8", 0.4, improves="TPOT")
HALF = runs("fold-P16-R8", 0.1, "fold")


def gate(passes=True):
    reason = None if passes else "the gap without a sink is not above zero"
    return [example(STREAMING_GATE, corpus="long", passes=passes, reason=reason)]


def by_point(rows):
    return {row["point"]: row for row in rows}


def test_a_prune_in_portions_begins_once():
    assert boundaries([16, 17, 18, 30, 31]) == [16, 30]
    assert since_prune([3, 4, 8], 10).tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 0, 1]


def test_quality_is_paired_with_eviction_at_each_token():
    found = by_point(summarise_quality([REFERENCE, LAZY, HALF], gate(), **SETTINGS))
    lazy, half = found["lazy_prune-P16-R8"], found["fold-P16-R8"]
    assert found["streaming_llm-P16-R1"]["delta"] == 0
    assert lazy["delta"] == pytest.approx(0.2, abs=0.01), "0.4 nats in every other step"
    assert lazy["delta_high"] - lazy["delta_low"] < 0.01, "the streams' own levels cancel"
    assert lazy["spike_peak"] == pytest.approx(0.4)
    assert lazy["spike_area"] == pytest.approx(8 * lazy["delta"])
    assert lazy["spike_width"] == 4
    assert lazy["diagnosis"] == "spike"
    assert lazy["drop_size_max"] == 8
    assert lazy["drop_size_p99"] == 8
    assert lazy["improved"] is None
    assert half["improved"] == "yes"


def test_a_loss_without_a_spike_is_drift():
    assert diagnose(0.01, -0.1) == "spike"
    assert diagnose(-0.01, 0.1) == "window drift"
    assert diagnose(-0.01, -0.1) == "none"


def test_spikes_by_steps():
    rows = summarise_spikes([REFERENCE, LAZY], gate(), **SETTINGS)
    assert [(row["since"], row["until"]) for row in rows] == [(0, 4), (4, 8)]
    assert rows[0]["delta"] == pytest.approx(0.4)
    assert rows[1]["delta"] == pytest.approx(0, abs=1e-9)


def test_without_sinks_no_cliff_is_claimed():
    quality = by_point(summarise_quality([REFERENCE, LAZY], gate(False), **SETTINGS))
    lazy = quality["lazy_prune-P16-R8"]
    assert lazy["status"] == "skipped"
    assert "no attention sinks here: the gap" in lazy["reason"]
    assert lazy["spike_peak"] is lazy["spike_area"] is lazy["spike_width"] is None
    spikes = summarise_spikes([REFERENCE, LAZY], gate(False), **SETTINGS)
    assert {(row["status"], row["delta"]) for row in spikes} == {("skipped", None)}
    rows = matrix(gate(False))
    assert all(row["verdict"].startswith("none: no attention sinks") for row in rows)


def latency(eager=(), **tpot):
    """Two runs of eight tokens for each time, a hundredth slower in the second; those of `eager`
    methods on the eager decoder, where lazy pruning takes ten times as long."""
    rows = []
    for name, ms in tpot.items():
        point = name.replace("_P", "-P").replace("_R", "-R")
        method, _, period = point.split("-")
        about = {"point": point, "method": method, "compression_interval": int(period[1:])}
        reason = "it looks at each key" if method in eager else None
        paths = (
            ["eager"] if reason else ["compiled", *(["eager"] if method == "lazy_prune" else [])]
        )
        for path in paths:
            slow = 10 if path == "eager" and not reason else 1
            rows += [
                example(
                    LATENCY_RUNS,
                    **about,
                    path=path,
                    no_fast_path=reason,
                    repeat=n,
                    token_ms=[ms * slow * (1 + n / 100)] * 8,
                    drop_steps=[],
                )
                for n in range(2)
            ]
    return summarise_latency(rows, skip=2)


TIMES = latency(lazy_prune_P16_R8=1.0, fold_P16_R8=1.01, streaming_llm_P16_R1=1.5)


def matrix(judged, times=TIMES):
    tables = [REFERENCE, LAZY, HALF]
    quality = summarise_quality(tables, judged, **SETTINGS)
    return judge_matrix(tables, quality, times, bars=BARS, **SETTINGS)


def test_success_needs_loss_and_time():
    rows = by_point(matrix(gate()))
    assert rows["fold-P16-R8"]["removed"] == pytest.approx(0.75, abs=0.02)
    assert rows["fold-P16-R8"]["verdict"] == "success"
    assert rows["lazy_prune-P16-R8"]["verdict"] == "the reference"
    slow = latency(lazy_prune_P16_R8=1.0, fold_P16_R8=1.3)
    said = by_point(matrix(gate(), slow))["fold-P16-R8"]["verdict"]
    assert said == "removes enough at 1.300 [1.300, 1.300] × the best lazy TPOT"


def test_what_has_no_fast_path_is_compared_on_the_eager_one_and_is_no_success():
    times = latency(("fold",), lazy_prune_P16_R8=1.0, fold_P16_R8=9.0, streaming_llm_P16_R1=1.5)
    rows = by_point(matrix(gate(), times))
    fold, lazy = rows["fold-P16-R8"], rows["lazy_prune-P16-R8"]
    assert (lazy["path"], lazy["tpot_ratio"]) == ("compiled", 1.0)
    assert fold["path"] == "eager"
    assert fold["tpot_ratio"] == fold["period_ratio"] == pytest.approx(0.9)
    assert fold["verdict"].startswith("removes enough; no fast path, at 0.900")
    found = decided(times=times)
    assert "0.900 [0.900, 0.900] × lazy pruning's, eager" in found["streaming_fold"]["detail"]


def test_ratios_are_paired_by_repeat():
    def row(point, n, ms, path="compiled"):
        method, _, period = point.split("-")
        about = {"method": method, "compression_interval": int(period[1:])}
        return example(LATENCY_RUNS, point=point, path=path, repeat=n, token_ms=[ms] * 4, **about)

    lazy, fold = "lazy_prune-P16-R8", "fold-P16-R4"
    rows = [row(point, n, ms) for n in range(3) for point, ms in ((lazy, n + 1), (fold, 2 * n + 2))]
    found = by_point(summarise_latency(rows, skip=1))[fold]
    assert [found[f"tpot_ratio{end}"] for end in ("", "_low", "_high")] == [2, 2, 2]
    assert found["period_ratio"] is None, "no lazy pruning with its period"


def test_verdicts_say_what_lacks():
    row = example(
        STREAMING_MATRIX,
        method="fold",
        compression_interval=8,
        status="ok",
        lazy_delta=0.2,
        removed=0.2,
        saved_low=-0.02,
        saved_high=0.1,
    )
    assert verdict(row, BARS) == "removes 20% [-10%, 50%]"
    assert verdict(row | {"lazy_delta": 0.1, "removed": None}, BARS).startswith("nothing")
    assert verdict(row | {"compression_interval": 4}, BARS) == "not asked: period below 8"
    good = row | {"removed": 0.8, "saved_low": 0.1, "tpot_ratio": None}
    noisy = {"tpot_ratio": 1.0, "tpot_ratio_low": 0.9, "tpot_ratio_high": 1.1}
    said = verdict(good | noisy | {"no_fast_path": None}, BARS)
    assert said == "removes enough at 1.000 [0.900, 1.100] × the best lazy TPOT"
    assert verdict(good, BARS) == "removes enough; not timed"


def test_two_changes_without_a_gain_stop_a_direction():
    def row(n, low):
        return example(
            STREAMING_MATRIX, corpus="long", point=f"p{n}", method="tova", saved=0.0, saved_low=low
        )

    [stopped] = keep_ledger([row(0, 0.1), row(1, -0.1), row(2, -0.1)], [], noise=0.01)
    assert stopped["stopped"]
    assert stopped["note"].startswith("negative result")
    [goes_on] = keep_ledger([row(0, -0.1), row(1, 0.1), row(2, -0.1)], [], noise=0.01)
    assert not goes_on["stopped"]


def test_latency_tells_prune_steps_from_others():
    times = [9.0, 9.0] + [1.0, 1.0, 2.0, 1.0] * 5
    rows = [
        example(
            LATENCY_RUNS,
            point="a",
            repeat=n,
            token_ms=times,
            drop_steps=[5 + 4 * k for k in range(5)],
            prefill_ms=10.0,
        )
        for n in range(2)
    ]
    [row] = summarise_latency(rows, skip=2)
    assert row["prune_step_ratio"] == 2.0
    assert row["steady_tpot_ms"] == pytest.approx(1.25)
    assert row["tokens"] == 22
    assert row["total_s"] == pytest.approx((10 + sum(times)) / 1e3)


def test_the_front_is_what_nothing_beats():
    quality = [
        example(STREAMING_QUALITY, corpus="long", point=point, ppl_change=change)
        for point, change in (("a", 0.0), ("b", 0.1), ("c", 0.2), ("untimed", 0.0))
    ]
    times = [
        example(STREAMING_LATENCY, point=point, path=path, steady_tpot_ms=ms)
        for point, path, ms in (
            ("a", "compiled", 2.0),
            ("b", "compiled", 1.0),
            ("c", "compiled", 1.5),
            ("c", "eager", 15.0),
        )
    ]
    found = find_front(quality, times)
    assert {(row["point"], row["path"]): row["on_front"] for row in found} == {
        ("a", "compiled"): True,
        ("b", "compiled"): True,
        ("c", "compiled"): False,
        ("c", "eager"): True,  # alone there
    }


@pytest.mark.parametrize(
    ("gap", "mass", "passes"), [(0.1, 0.3, True), (0, 0.3, False), (0.1, 0.0, False)]
)
def test_the_gate_needs_mass_and_a_gap(gap, mass, passes):
    masses = [example(SINK_MASS, layer=n, mass=m) for n, m in enumerate((0.0, mass))]
    gaps = [
        example(SINK_GAP, corpus="long", stream=n, without_nll=n + gap, with_nll=float(n))
        for n in range(5)
    ]
    [row] = judge_sinks(masses, gaps, min_mass=0.05, seed=1, resamples=100)
    assert row["passes"] == passes
    assert (row["reason"] is None) == passes
    assert row["gap"] == pytest.approx(gap)


PROGRAMME = {"max_drop": 4, "refresh_budget": 2}


def programme(points, **bars):
    quality = summarise_quality([REFERENCE, LAZY, HALF], gate(), **SETTINGS)
    return list_programme(quality, TIMES, points=points, programme=PROGRAMME, bars=BARS | bars)


def test_the_programmes_points_say_whether_the_bar_is_held():
    [row] = programme(["lazy_prune-P16-R8"])
    assert row["verdict"] == "not held"
    assert row["ppl_change"] == pytest.approx(np.expm1(0.2), abs=0.02)
    assert row["ppl_change_low"] > row["bar"] == 0.05
    assert (row["max_drop"], row["max_drop_binds"], row["path"]) == (None, False, "compiled")
    assert row["steady_tpot_ms"] == pytest.approx(1.005)
    [row] = programme(["lazy_prune-P16-R8"], max_ppl_long=0.5)
    assert row["verdict"] == "held"


def decided(rival_above=0.4, times=TIMES):
    """Decisions where the SnapKV-like method loses so much after each prune."""
    rival = runs("snapkv-P16-R8", rival_above, "snapkv")
    tables = [REFERENCE, LAZY, HALF, rival]
    quality = summarise_quality(tables, gate(), **SETTINGS)
    judged = judge_matrix(tables, quality, times, bars=BARS, **SETTINGS)
    rows = decide_streaming(
        tables,
        gate(),
        quality,
        judged,
        programme(["lazy_prune-P16-R8"]),
        [],
        keep_ledger(judged, times, noise=0.01),
        bars=BARS,
        scale="smoke",
        **SETTINGS,
    )
    keys = [(row["decision"], row["subject"]) for row in rows]
    assert len(set(keys)) == len(keys)
    return {row["decision"]: row for row in rows}


def test_decisions_follow_from_the_tables():
    found = decided()
    assert found["streaming_prune"]["verdict"] == "go: prunes cost a spike"
    assert found["streaming_control"]["verdict"] == "success"
    assert found["streaming_fold"]["verdict"].startswith(("falls short", "undecided"))
    assert found["streaming_programme"]["verdict"] == "held by 0 of 1 points"
    assert found["streaming_snapkv"]["verdict"] == "no worse"
    assert found["streaming_snapkv"]["value"] == pytest.approx(-0.15, abs=0.02)


@pytest.mark.parametrize(("above", "said"), [(0.0, "worse"), (0.1, "no worse"), (0.4, "no worse")])
def test_the_rival_decides(above, said):
    assert decided(above)["streaming_snapkv"]["verdict"] == said


def test_what_is_slower_than_the_rival_does_not_count():
    times = latency(
        lazy_prune_P16_R8=1.0, fold_P16_R8=1.3, snapkv_P16_R8=1.0, streaming_llm_P16_R1=1.5
    )
    row = decided(0.2, times)["streaming_snapkv"]
    assert row["subject"].startswith("lazy_prune")
    assert row["verdict"] == "worse"
    assert "the best of 1" in row["detail"]
