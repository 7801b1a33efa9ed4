"""Other frameworks' streams: points and budgets, rows for what cannot run, pairing, ratios."""

import numpy as np
import pytest

from ember.peers.client import PeerFailed, PeerMissing
from ember.studies.streaming.peers import measure
from ember.studies.streaming.peers.figure import draw
from ember.studies.streaming.peers.measure import own_points, points_of, stream_peers
from ember.studies.streaming.peers.summary import compare_peers
from ember.studies.streaming.peers.tables import PEER_STREAMS, PEER_TIMES, STREAMING_PEERS
from tests.rows import example, frame

BUDGET = {"peak": 24, "compression_interval": [4, 8]}
FRAMEWORK = {"adapter": "kvpress_stream", "python": None, "arguments": {}, "environment": {}}


def methods(*given) -> list[dict]:
    usual = {"label": "stock", "period": "budget", "arguments": {}}
    return [usual | one for one in given]


def kvpress(*given) -> dict:
    return {"kvpress": FRAMEWORK | {"methods": methods(*given)}}


def test_points_prune_by_the_budget_or_at_each_token():
    found = points_of(
        kvpress({"method": "KnormPress"})
        | {
            "transformers": FRAMEWORK
            | {"methods": methods({"method": "DynamicSlidingWindowLayer", "period": "each"})},
            "llama_cpp": FRAMEWORK | {"methods": methods({"method": "context shift"})},
        },
        BUDGET,
        4,
    )
    assert [point.compression_interval for point in found] == [4, 8, 1, 4, 8]
    assert [point.prefill for point in found] == [20, 16, 23, 20, 16]
    assert [point.n_sink for point in found] == [0, 0, 0, 4, 4]
    assert found[0].spec is None
    own = [point.method for point in own_points(found, 4)]
    lazy = [f"lazy_prune-P24-R{period}" for period in (4, 8)]
    assert own == ["streaming_llm-P24-R1", *lazy, "window-P24-R1"]


class FakePeer:
    """Answers like a peer whose losses are all 2 nats, or fails as it is told to."""

    started = 0

    def __init__(self, adapter, python, setup, *, timeout_s, environment):
        self.setup = setup

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        pass

    def start(self):
        FakePeer.started += 1
        if self.setup["arguments"].get("missing"):
            raise PeerMissing("ModuleNotFoundError: No module named 'kvpress'\nsee docs/peers.md")
        return {"versions": {"fake": "1.0"}, "attention": "fake", "rows": 1}

    def stream(self, streams, *, prefill, method, **_):
        assert len(streams) == 1, "it takes one at a time"
        if method == "Broken":
            raise PeerFailed("AssertionError: too short\nsee docs/peers.md")
        calls = 1 + len(streams[0]) - prefill
        return {
            "nll": [[2.0] * (len(tokens) - 1) for tokens in streams],
            "ms": [9.0] + [1.0] * (calls - 1),
            "fed": [prefill] + [1] * (calls - 1),
            "visible": [24] * calls,
        }


@pytest.fixture
def compare(streaming_model, monkeypatch):
    monkeypatch.setattr("ember.peers.client.Peer", FakePeer)
    monkeypatch.setattr(measure, "cut_streams", lambda *_: np.arange(160).reshape(2, 80) % 61)
    FakePeer.started = 0

    def run(frameworks):
        return stream_peers(
            model=streaming_model,
            long=None,
            evaluated={},
            frameworks=frameworks,
            budget={"peak": 24, "compression_interval": [8]},
            n_sink=4,
            streams=2,
            tokens=80,
            timeout_s=5,
            warmup=1,
            repeats=2,
            threads=1,
            device="cpu",
            dtype="float32",
            seed=1,
        )

    return run


@pytest.fixture(scope="module")
def streaming_model(tmp_path_factory):
    from ember.model.checkpoint import save_decoder
    from tests.tiny import wild

    decoder = wild("gpt_neox", bos_token_id=0, eos_token_id=0)
    return save_decoder(decoder, tmp_path_factory.mktemp("model") / "tiny", about={})


def test_a_framework_beside_this_project_and_one_that_breaks(compare):
    streams, times = compare(
        kvpress({"method": "Broken"}, {"method": "StreamingLLMPress", "label": "re-rotated"})
    )
    assert FakePeer.started == 2, "anew after the failure, and not for each stream"
    rows = compare_peers(streams, times, skip=8, seed=1, resamples=200)
    assert [*rows[0]] == [*STREAMING_PEERS.names]
    by = {(row["method"], row["label"]): row for row in rows}
    broken = by["Broken", "stock"]
    assert (broken["status"], broken["n"], broken["nll"]) == ("failed", 0, None)
    assert broken["reason"] == "AssertionError: too short"
    peer, reference = by["StreamingLLMPress", "re-rotated"], by["streaming_llm-P24-R1", "eager"]
    assert (peer["streams"], peer["tokens"], peer["nll"]) == (2, 55, 2.0)
    assert peer["loss_above_r1"] == pytest.approx(2.0 - reference["nll"])
    assert peer["low"] <= peer["loss_above_r1"] <= peer["high"]
    assert (reference["loss_above_r1"], reference["eager_ratio"]) == (0.0, 1.0)
    assert (peer["tpot_ms"], peer["n"], peer["visible_max"]) == (1.0, 2, 24)
    assert peer["eager_ratio"] == pytest.approx(1 / by["lazy_prune-P24-R8", "eager"]["tpot_ms"], 2)
    assert peer["equals"] == "lazy_prune-P24-R8"
    assert peer["largest_difference"] > 0.1, "two nats are not what it computes"
    assert (peer["version"], peer["attention"]) == ("fake 1.0", "fake")


def test_a_framework_that_is_not_installed_is_skipped_and_says_what_installs_it(compare):
    frameworks = kvpress({"method": "KnormPress"}, {"method": "TOVAPress"})
    frameworks["kvpress"]["arguments"] = {"missing": True}
    streams, times = compare(frameworks)
    assert FakePeer.started == 1, "it is not tried for each point"
    rows = compare_peers(streams, times, skip=8, seed=1, resamples=200)
    for row in rows:
        if row["framework"] == "kvpress":
            assert row["status"] == "skipped"
            assert row["reason"].endswith("No module named 'kvpress'; make peers installs it")
            assert row["loss_above_r1"] is row["tpot_ms"] is None
    assert {row["framework"] for row in times} == {"ember"}
    _, caption, shown = draw(frame(STREAMING_PEERS, rows), "tiny")
    assert set(shown["framework"]) == {"ember"}, "the small print counts what is drawn"
    assert "Not measured: kvpress" in caption


def test_ratios_are_of_the_same_round_and_losses_of_tokens_after_the_peak():
    def stream(framework, method, label, period, nll):
        point = {"framework": framework, "method": method, "label": label, "peak": 2}
        return example(
            PEER_STREAMS, **point, compression_interval=period, stream=0, nll=nll, status="ok"
        )

    def time(framework, method, label, period, repeat, ms):
        point = {"framework": framework, "method": method, "label": label, "peak": 2}
        return example(
            PEER_TIMES, **point, compression_interval=period, repeat=repeat, token_ms=ms,
            prefill=1, status="ok",
        )  # fmt: skip

    streams = [
        stream("ember", "streaming_llm-P2-R1", "eager", 1, [9.0, 9.0, 1.0, 1.0]),
        stream("transformers", "Layer", "stock", 1, [0.0, 0.0, 2.0, 4.0]),
    ]
    times = [
        time("ember", "streaming_llm-P2-R1", "eager", 1, 0, [99.0, 99.0, 2.0, 2.0]),
        time("ember", "streaming_llm-P2-R1", "eager", 1, 1, [99.0, 99.0, 8.0, 8.0]),
        time("transformers", "Layer", "stock", 1, 0, [99.0, 99.0, 4.0, 8.0]),
        time("transformers", "Layer", "stock", 1, 1, [99.0, 99.0, 8.0, 8.0]),
    ]
    _, row = compare_peers(streams, times, skip=1, seed=1, resamples=100)
    assert (row["nll"], row["loss_above_r1"]) == (3.0, 2.0)
    assert (row["tpot_ms"], row["tpot_ms_min"], row["tpot_ms_max"]) == (7.0, 6.0, 8.0)
    assert row["eager_ratio"] == 2.0, "the median of 6 / 2 and 8 / 8"
    assert row["fast_ratio"] is None
