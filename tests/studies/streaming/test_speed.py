"""Streams side by side: what ran them, what was dropped and copied; and what counts as a gain."""

import pytest

from ember.streaming.build import speed_specs
from ember.studies.streaming.speed.figure import draw
from ember.studies.streaming.speed.measure import time_streams
from ember.studies.streaming.speed.summary import summarise_speed
from ember.studies.streaming.speed.tables import SPEED_RUNS, STREAMING_SPEED, SWITCHES
from tests.rows import example, frame
from tests.tiny import declared

PEAK, TOKENS = 48, 24
SPECS = speed_specs({"peak": PEAK, "compression_interval": [4, 8]})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    model = declared(tmp_path_factory.mktemp("m") / "m", "gpt_neox")
    runtime = {"device": "cpu", "dtype": "float32", "seed": 1}
    return time_streams(model=model, specs=SPECS, tokens=TOKENS, warmup=0, repeats=2, **runtime)


def of(runs, **wanted):
    [row, *_] = [row for row in runs if all(row[k] == v for k, v in wanted.items())]
    return row


def test_every_subject_runs_or_says_why_not(runs):
    said = {(row["method"], row["off"]): row["path"] or row["reason"] for row in runs}
    assert said.pop(("window", None)) == "transformers"
    assert said.pop(("refresh", "fast path")) == "eager"
    for off in ("CUDA graphs", "fused norm", "fused MLP"):
        assert "CUDA kernels only" in said.pop(("refresh", off))
    assert set(said.values()) == {"compiled"}
    assert len(said) == 7
    ok = [row for row in runs if row["status"] == "ok"]
    assert len(ok) == 2 * (len(SPECS) + len(SWITCHES) - 3 + 1)
    assert {len(row["token_ms"]) for row in ok} == {TOKENS}


def test_drops_and_copies_are_counted(runs):
    token = 2 * 3 * 4 * 8 * 4  # keys and values, layers, heads, dimensions, bytes
    full, llm = (of(runs, method=name) for name in ("full", "streaming_llm"))
    assert full["dropped"] == full["copied_bytes"] == 0
    assert full["kv_bytes"] == token * (PEAK + (TOKENS - 1) / 2)
    assert llm["dropped"] == TOKENS - 1  # what the last one would drop nobody needs
    assert llm["kv_bytes"] == token * PEAK
    # A token after the others and four sinks at each prune, and a wrap of 47 and 48 held or so.
    assert llm["copied_bytes"] / token == pytest.approx(5, abs=5)
    lazy = of(runs, method="lazy_prune", compression_interval=8)
    assert lazy["drop_steps"] == [1, 9, 17]
    theirs = of(runs, path="transformers")
    assert theirs["kv_bytes"] == token * PEAK
    assert theirs["copied_bytes"] == token * (PEAK - 1)
    assert theirs["drop_steps"] == llm["drop_steps"] + [TOKENS]


def timed(ms, repeat=0, **given):
    about = {"point": "refresh", "method": "refresh", "path": "compiled", "dropped": 1}
    about |= {"token_ms": ms, "repeat": repeat, "prefill_ms": 9.0, "copied_bytes": 0.0}
    return example(SPEED_RUNS, **about | {"limit_kind": "memory", "kv_bytes": 5e8} | given)


def test_the_steady_state_and_the_share_of_the_limit():
    ms = [50.0] * 4 + [2.0] * 20
    for step in range(5, 21, 2):
        ms[step - 1] = 3.0
    about = {"read_gb_s": 1000.0, "weight_bytes": 500_000_000}
    drops = list(range(5, 21, 2))
    rows = [timed(ms, repeat, drop_steps=drops, **about) for repeat in range(2)]
    [found] = summarise_speed(rows, skip=4, noise=0.01)
    assert found["steady_tpot_ms"] == pytest.approx((12 * 2 + 8 * 3) / 20)
    assert found["token_ms_p50"] == 2.0
    assert found["token_ms_max"] == 3.0
    assert found["token_ms_p99"] is None
    assert found["prune_step_ratio"] == 1.5
    assert found["limit_ms"] == pytest.approx(1.0)
    assert found["share"] == pytest.approx(1 / 2.4)


@pytest.mark.parametrize(
    ("on", "off", "verdict"),
    [
        ((1.0, 1.2), (1.1, 1.4), "stable gain over 1 %"),
        ((1.0, 1.2), (1.1, 1.2), "no stable gain over 1 %"),
        ((1.1, 1.2), (1.0, 1.0), "a loss over 1 %"),
        ((1.0,), (2.0,), "unknown: 1 repeats"),
    ],
)
def test_a_gain_is_paired_by_repeat_and_must_be_stable(on, off, verdict):
    rows = [timed([ms] * 10, n) for n, ms in enumerate(on)]
    rows += [timed([ms] * 10, n, off="soft ring") for n, ms in enumerate(off)]
    rows += [timed([4.0] * 10, n, point="window", path="transformers") for n in range(len(on))]
    rows.append(timed([], off="CUDA graphs", path=None, status="skipped", reason="no GPU"))
    found = {
        row["off"]: row
        for row in summarise_speed(rows, skip=0, noise=0.01)
        if row["path"] != "transformers"
    }
    assert verdict in found["soft ring"]["verdict"]
    assert found[None]["verdict"] is None
    assert found[None]["speedup"] == pytest.approx(4 / (sum(on) / len(on)), rel=0.02)
    assert found["CUDA graphs"]["reason"] == "no GPU"
    assert found["CUDA graphs"]["gain"] is None


def test_the_figure_says_what_is_skipped_nowhere():
    times = {"status": "ok", "steady_tpot_ms": 2.0, "steady_tpot_ms_min": 1.0}
    times |= {"steady_tpot_ms_max": 3.0, "method": "refresh", "path": "compiled"}
    rows = [times, times | {"off": "soft ring", "gain": 0.1, "gain_low": 0.0, "gain_high": 0.2}]
    rows.append({"status": "skipped", "off": "CUDA graphs", "method": "refresh"})
    figure, caption = draw(frame(STREAMING_SPEED, rows), scale="tiny")
    assert "soft ring: +10.0 %" in caption
    assert "CUDA graphs" not in caption
    assert len(figure.axes) == 2
