"""Packed products, decoding and weight errors: measured on a small model, and summarised."""

import pytest
import torch

from ember.model.checkpoint import load_decoder
from ember.model.packed import LinearNVFP4, quantise_decoder
from ember.peers.client import PeerFailed
from ember.records.tables import write_table
from ember.studies.lowbit.kernels import setup
from ember.studies.lowbit.kernels.decoding import _turns, time_decoding
from ember.studies.lowbit.kernels.figure import draw
from ember.studies.lowbit.kernels.paths import paths_of
from ember.studies.lowbit.kernels.peers import times_of
from ember.studies.lowbit.kernels.products import time_products
from ember.studies.lowbit.kernels.summary import summarise_decoding, summarise_kernels
from ember.studies.lowbit.kernels.tables import DECODE, DECODE_RUNS, KERNELS, PRODUCT_RUNS
from ember.studies.lowbit.quantise.make import quantise_model
from ember.studies.lowbit.quantise.tables import QUANTISED
from tests.tiny import declared
from tests.tiny import draw as tokens_of

RUNTIME = {"device": "cpu", "dtype": "float32", "seed": 0}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "head_dim": 16}


@pytest.fixture
def check_rows(tmp_path):
    """Writing a table checks it against its schema."""
    return lambda rows, schema: write_table(tmp_path / "table.parquet", rows, schema)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return declared(tmp_path_factory.mktemp("models") / "small", **SIZES)


TIMES = {"warmup": 0, "repeats": 2, "runtime": RUNTIME, "threads": 1}
DECODED = {"decoded": ["nvfp4"], "prompt_tokens": 6, "new_tokens": 4} | TIMES


@pytest.fixture(scope="module")
def products(model):
    return time_products(model=model, formats=["nvfp4", "nf4"], rows=[1, 3], **TIMES)


@pytest.fixture(scope="module")
def decoding(model):
    peers = {"llama_cpp": {"adapter": "llama_cpp_decode", "python": "none"}}
    peers |= {"vllm": {"adapter": "vllm_offline"}}
    return time_decoding(model=model, candidates=[1, 2], peers=peers, **DECODED)


def test_errors_of_kernels_and_formats_are_told_apart(products, check_rows):
    check_rows(products, PRODUCT_RUNS)
    rows = summarise_kernels(products)
    check_rows(rows, KERNELS)
    for row in rows:
        if row["status"] == "ok":
            assert row["kernel_error"] < 1e-5
            assert row["gb_s_median"] == pytest.approx(row["weight_bytes"] / row["ms_median"] / 1e6)
        if row["format"] != "dense":
            assert 0.05 < row["quantisation_error"] < 0.15
    packed = {row["weight_bytes"] for row in rows if row["format"] == "nvfp4"}
    dense = {row["weight_bytes"] for row in rows if row["format"] == "dense"}
    assert 7 < max(dense) / max(packed) < 7.2  # 32 bits against 4.5
    fastest = [r for r in rows if r["format"] == "dense" and r["product"] == "qkv"]
    assert max(row["speedup"] for row in fastest if row["rows"] == 1) == 1


def test_what_is_not_there_says_why(products):
    skipped = {r["path"]: r["reason"] for r in summarise_kernels(products) if r["n"] == 0}
    assert "compute capability 10.0" in skipped["scaled_mm"]
    assert isinstance(paths_of("nvfp4", "cpu")["scaled_mm"], str)


def test_a_scale_that_is_read_wrongly_shows_as_a_kernel_error():
    """The bits of E4M3 taken for whole numbers: the fault that made a model emit one token."""
    from dataclasses import replace

    weight = LinearNVFP4.of(torch.randn(32, 64)).matrix
    x, exact = torch.randn(2, 64), weight.dense()
    call = paths_of("nvfp4", "cpu")["kernels"]
    torch.testing.assert_close(call([weight])(x), x @ exact.T, rtol=1e-4, atol=1e-4)
    wrong = replace(weight, scales=weight.scales.float())
    found = call([wrong])(x)
    assert (found - x @ exact.T).norm() > 0.3 * (x @ exact.T).norm()


def test_decoding_is_compared_with_dense_weights_of_the_same_run(decoding, check_rows):
    check_rows(decoding, DECODE_RUNS)
    rows = summarise_decoding(decoding)
    check_rows(rows, DECODE)
    gone = {r["engine"]: r["reason"] for r in rows if r["status"] == "skipped"}
    assert "on a GPU alone" in gone["vllm"]
    assert "is not there" in gone["llama_cpp"]
    rows = [r for r in rows if r["status"] == "ok"]
    assert {r["engine"] for r in rows} == {"ember"}
    assert [r["speedup"] for r in rows if r["format"] == "dense"] == [1, 1]
    assert {r["backend"] for r in rows} == {"compiled"}
    by = {(r["format"], r["head"]): r["weight_bytes"] for r in rows}
    assert by["dense", "dense"] > by["nvfp4", "dense"] > by["nvfp4", "packed"]


class Clockwork:
    """A peer whose calls take what they are said to."""

    def __init__(self, first_s: float, step_s: float):
        self.first_s, self.step_s, self.asked = first_s, step_s, []

    def generate(self, prompts, new_tokens, *, candidates):
        self.asked.append((prompts, candidates))
        return {"total_s": self.first_s + self.step_s * (new_tokens - 1)}


def test_a_peer_is_timed_by_calls_on_prompts_of_their_own():
    prompts, peer = iter([[1, 2], [3, 4]]), Clockwork(0.5, 0.02)
    assert times_of(peer, lambda: next(prompts), 3, 11) == pytest.approx((500, 20))
    assert peer.asked == [([[1, 2]], 3), ([[3, 4]], 3)]
    with pytest.raises(PeerFailed, match="no longer than the first"):
        times_of(Clockwork(0.5, 0.0), lambda: [1], 1, 4)


def test_a_peer_that_fails_leaves_the_turns_and_its_row_says_why(model, monkeypatch, check_rows):
    said = {"engine": "llama_cpp", "format": "q4_0", "head": "packed"}
    said |= {"backend": "a version", "weight_bytes": 1000}
    made = ({"llama_cpp": Clockwork(0.5, 0.0)}, {"llama_cpp": said})
    monkeypatch.setattr("ember.studies.lowbit.kernels.decoding.start_peers", lambda *_: made)
    decoding = time_decoding(model=model, candidates=[1], peers={}, **DECODED)
    check_rows(decoding, DECODE_RUNS)
    rows = summarise_decoding(decoding)
    check_rows(rows, DECODE)
    [row] = [row for row in rows if row["engine"] == "llama_cpp"]
    assert (row["status"], row["n"], row["speedup"]) == ("failed", 0, None)
    assert "no longer" in row["reason"]
    assert sum(row["n"] == 2 for row in rows) == 3


def test_peers_on_a_gpu_have_rounds_of_their_own():
    own, others = {"a": None, "b": None}, {"c": None}
    apart = [name for _, number, name in _turns([own, others], 1, 2) if number >= 0]
    assert sorted(apart[:4]) == ["a", "a", "b", "b"]
    assert apart[4:] == ["c", "c"]
    mixed = [name for _, _, name in _turns([own | others], 0, 3)]
    assert {*mixed[:3]} == {*mixed[3:6]} == {"a", "b", "c"}


def test_the_limit_is_by_the_best_read_before_or_after(monkeypatch):
    import ember.measure.roofline as roofline

    monkeypatch.setattr(roofline, "read_bandwidth_gb_s", lambda *_, **__: 5.0)
    monkeypatch.setattr(roofline, "matvec_bandwidth_gb_s", lambda *_, **__: 7.0)
    rows = setup.with_best_bandwidth([{"read_gb_s": 6.0, "ms": 1.0}, {"read_gb_s": 9.0}], "cpu")
    assert rows == [{"read_gb_s": 7.0, "ms": 1.0}, {"read_gb_s": 9.0}]


def test_the_figure_is_drawn_from_both(products, decoding):
    import pandas as pd

    tables = summarise_kernels(products), summarise_decoding(decoding)
    figure, caption = draw(*map(pd.DataFrame, tables), "smoke")
    assert len(figure.axes) == 2
    assert "NVFP4" in caption


def test_a_quantised_model_is_written_and_its_errors_told(model, tmp_path, check_rows):
    packed = tmp_path / "nvfp4"
    rows = quantise_model(model=model, format="nvfp4", packed=packed, runtime=RUNTIME)
    check_rows(rows, QUANTISED)
    assert len(rows) == 3 * 7 + 1
    assert all(0.08 < row["relative_error"] < 0.11 for row in rows)  # normal weights: 0.095
    assert all(4.5 <= row["bits"] < 4.6 for row in rows)
    read, made = load_decoder(packed), load_decoder(model)
    quantise_decoder(made, "nvfp4", skip=())
    tokens = tokens_of(1, 9)
    with torch.inference_mode():
        assert torch.equal(read(tokens), made(tokens))
