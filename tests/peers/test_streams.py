"""Peers of the streaming methods: what they compute is what methods of this project compute."""

import io
import json
import subprocess
import sys
import types
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from ember.model.checkpoint import save_decoder
from ember.model.gguf import export_gguf
from ember.peers import serve
from ember.peers.client import Peer, PeerFailed
from ember.records.provenance import source_root
from ember.streaming.build import build
from ember.streaming.stream import run
from tests.tiny import draw, wild

PEAK, PERIOD = 24, 8
TOKENS = draw(3, 90)
BUDGET = {"prefill": PEAK - PERIOD, "peak": PEAK, "compression_interval": PERIOD, "n_sink": 4}
# Partial rotation with an odd number of still dimensions in each half is the hardest for a shim.
NEOX = {"head_dim": 16, "hidden_size": 64, "rope_fraction": 0.25, "tie_embeddings": True}
CLOSE = 1e-4
KVPRESS = source_root() / ".venv-kvpress" / "bin" / "python"


@pytest.fixture(scope="module")
def decoder():
    return wild("gpt_neox", bos_token_id=0, eos_token_id=0, **NEOX)


@pytest.fixture(scope="module")
def setup(decoder, tmp_path_factory):
    folder = save_decoder(decoder, tmp_path_factory.mktemp("peer") / "model", about={})
    given = {"model": str(folder), "weights": "files", "gguf": None, "device": "cpu", "seed": 0}
    given |= {"dtype": "float32", "threads": 1, "capacity": PEAK, "candidates": 1, "arguments": {}}
    return given


@pytest.fixture(scope="module")
def kvpress_peer(setup):
    """kvpress itself, where `make peers` has installed it."""
    if not (KVPRESS.parent.parent / "installed").is_file():
        pytest.skip(f"{KVPRESS} is not there: make peers")
    with Peer("kvpress_stream", KVPRESS, setup, timeout_s=200) as peer:
        assert peer.start()["versions"]["kvpress"]
        yield peer


def ours(decoder, name: str, **given) -> np.ndarray:
    peak = {"peak": TOKENS.shape[1] if name == "full" else PEAK}
    return run(decoder, TOKENS, build({"name": name} | peak | given)).nll


def ask(adapter: str, *lines: dict) -> list[dict]:
    answered = io.StringIO()
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    assert serve.main([adapter], io.StringIO(asked), answered) == 0, answered.getvalue()
    return [json.loads(line) for line in answered.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("layers", "method"),
    [
        ("DynamicLayer", "full"),
        ("DynamicSlidingWindowLayer", "window"),
        ("StaticSlidingWindowLayer", "window"),
    ],
)
def test_transformers_layers_are_full_attention_and_the_window_without_sinks(
    decoder, setup, layers, method
):
    request = BUDGET | {"streams": TOKENS.tolist(), "method": layers, "label": "stock"}
    _, found, _ = ask("transformers_sliding", setup, request)
    assert np.abs(found["nll"] - ours(decoder, method)).max() < CLOSE
    assert max(found["visible"]) == (TOKENS.shape[1] if method == "full" else PEAK)
    assert sum(found["fed"]) == TOKENS.shape[1]
    assert len(found["ms"]) == len(found["fed"]) == 1 + TOKENS.shape[1] - PEAK + PERIOD
    assert min(found["ms"]) > 0


def test_a_window_of_positions_in_the_text_is_one_of_positions_in_the_cache(decoder):
    """Why Transformers' window, whose positions go on, equals ours, whose do not."""
    inside, outside = ours(decoder, "window"), ours(decoder, "window", absolute=True)
    assert np.abs(inside - outside).max() < CLOSE
    sinks = [ours(decoder, "streaming_llm", absolute=kept) for kept in (False, True)]
    assert np.abs(sinks[0] - sinks[1]).max() > 0.1, "with sinks they differ"


def test_the_shim_changes_no_logits(setup):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32).eval()
    with torch.inference_mode():
        before = model(TOKENS).logits
        serve.load_adapter("kvpress_stream").like_llama(model)
        assert torch.allclose(model(TOKENS).logits, before, atol=1e-4)
        attention = model.model.layers[0].self_attn
        hidden = torch.randn(2, 3, 64)
        qkv = attention.query_key_value(hidden).view(2, 3, 4, 3, 16)
        assert torch.equal(attention.q_proj(hidden), qkv[:, :, :, 0].flatten(2))
    assert model.model.rotary_emb.inv_freq.shape == (8,)


@pytest.mark.parametrize(
    ("label", "absolute"), [("re-rotated", False), ("order-fixed", True)], ids=str
)
def test_kvpress_in_the_right_order_is_lazy_pruning(decoder, kvpress_peer, label, absolute):
    found = kvpress_peer.stream(TOKENS.tolist(), method="StreamingLLMPress", label=label, **BUDGET)
    lazy = ours(decoder, "lazy_prune", compression_interval=PERIOD, absolute=absolute)
    assert np.abs(found["nll"] - lazy).max() < CLOSE
    assert max(found["visible"]) == PEAK


def test_kvpress_tova_is_ours_so_the_shim_gives_the_right_queries(decoder, kvpress_peer):
    found = kvpress_peer.stream(TOKENS.tolist(), method="TOVAPress", label="re-rotated", **BUDGET)
    tova = ours(decoder, "tova", compression_interval=PERIOD, recent=1)
    assert np.abs(found["nll"] - tova).max() < CLOSE


@pytest.mark.parametrize("method", ["KnormPress", "KeyDiffPress", "SnapKVPress"])
def test_kvpress_scorers_keep_to_the_peak(kvpress_peer, method):
    more = {"window_size": 4} if method == "SnapKVPress" else {}
    for label in ("stock", "re-rotated"):
        found = kvpress_peer.stream(TOKENS.tolist(), method=method, label=label, **BUDGET, **more)
        assert max(found["visible"]) == PEAK


SURVIVORS = """
import json, sys, types
sys.path.insert(0, {folder!r})
import serve, torch
adapter = serve.load_adapter("kvpress_stream")
found = {{}}
for label in ("stock", "order-fixed", "re-rotated"):
    press = adapter.decoding("StreamingLLMPress", label, 4, 8, 24, {{}})
    rotary = types.SimpleNamespace(inv_freq=torch.zeros(1))  # turns nothing: keys stay numbers
    module = types.SimpleNamespace(head_dim=2, rotary_emb=rotary)
    kept, found[label] = torch.arange(24.0), []
    for prune in range(1, 9):
        keys = kept[None, None, :, None].expand(1, 1, -1, 2)
        _, values = press.compress(module, None, keys, keys, None, {{}})
        kept = values[0, 0, :, 0]
        found[label].append(sorted(int(n) for n in kept if n < 4))
        kept = torch.cat([kept, torch.arange(16.0 + 8 * prune, 24 + 8 * prune)])
print(json.dumps(found))
"""


def test_stock_kvpress_loses_its_sinks_and_the_other_two_keep_them():
    if not (KVPRESS.parent.parent / "installed").is_file():
        pytest.skip(f"{KVPRESS} is not there: make peers")
    program = SURVIVORS.format(folder=str(serve.FOLDER.parent))
    said = subprocess.run(
        [KVPRESS, "-c", program], check=True, capture_output=True, text=True, timeout=200
    )
    found = json.loads(said.stdout)
    assert found["order-fixed"] == found["re-rotated"] == [[0, 1, 2, 3]] * 8
    assert found["stock"][0] == [0, 1, 2, 3], "the first prune finds the cache in order"
    assert not found["stock"][-1], "then what `topk` put first counts as sinks"


@dataclass
class Scorer:
    compression_ratio: float = 0.0


@dataclass
class StreamingLLMPress(Scorer):
    n_sink: int = 4


@dataclass
class DecodingPress:
    """kvpress 0.5.5's signature; it prunes nothing."""

    base_press: Scorer
    compression_interval: int = 512
    target_size: int = 2048
    made: ClassVar[list] = []

    @contextmanager
    def __call__(self, model):
        DecodingPress.made.append(self)
        assert all(hasattr(layer.self_attn, "q_proj") for layer in model.model.layers)
        yield


def test_kvpress_is_given_the_budget_and_labels_that_exist(decoder, setup, monkeypatch):
    """Against a stand-in: what is asked of kvpress where it is not installed."""
    module = types.ModuleType("kvpress")
    module.DecodingPress, module.StreamingLLMPress = DecodingPress, StreamingLLMPress
    module.KnormPress, module.KeyRerotationPress = Scorer, type("Rerotation", (), {})
    monkeypatch.setitem(sys.modules, "kvpress", module)
    adapter = serve.load_adapter("kvpress_stream")
    monkeypatch.setattr(adapter, "version", lambda package: "0.5.5")
    monkeypatch.setattr(serve, "load_adapter", lambda name: adapter)
    request = BUDGET | {"streams": TOKENS.tolist(), "label": "stock"}
    ready, sinks, norm, _ = ask(
        "kvpress_stream",
        setup,
        request | {"method": "StreamingLLMPress", "n_sink": 2},
        request | {"method": "KnormPress"},
    )
    assert ready["versions"]["kvpress"] == "0.5.5"
    first, second = DecodingPress.made
    assert (first.compression_interval, first.target_size) == (PERIOD, PEAK - PERIOD)
    assert first.base_press.n_sink == 2
    assert not hasattr(second.base_press, "n_sink")
    for found in (sinks, norm):
        assert np.abs(found["nll"] - ours(decoder, "full")).max() < CLOSE


def test_llama_cpps_shift_is_lazy_pruning(decoder, setup, llama_python, tmp_path):
    gguf = export_gguf(setup["model"], None, tmp_path / "model.gguf")
    lazy = ours(decoder, "lazy_prune", compression_interval=PERIOD)
    with Peer("llama_cpp_shift", llama_python, setup | {"gguf": str(gguf)}, timeout_s=60) as peer:
        assert peer.start()["rows"] == 1
        for row, tokens in enumerate(TOKENS.tolist()):
            found = peer.stream([tokens], method="context shift", label="stock", **BUDGET)
            assert max(found["visible"]) == PEAK
            # Its GELU is the tanh form.
            assert np.abs(found["nll"][0] - lazy[row]).max() < 0.05


def test_losses_that_are_missing_or_not_finite_are_a_failure(tmp_path):
    answers = [{"event": "ready"}]
    for losses in ([0.5], [0.5, float("nan")], [0.5, 0.25]):
        answers.append({"event": "stream", "nll": [losses], "fed": [1], "ms": [1], "visible": [1]})
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"for answer in {[json.dumps(answer) for answer in answers]!r}:\n"
        "    sys.stdin.readline(); print(answer, flush=True)\n"
    )
    python.chmod(0o755)
    setup = {"threads": 1, "arguments": {}}
    with Peer("kvpress_stream", python, setup, timeout_s=20) as peer:
        peer.start()
        with pytest.raises(PeerFailed, match="other than all tokens"):
            peer.stream([[1, 2, 3]], **BUDGET)
        with pytest.raises(PeerFailed, match="not finite"):
            peer.stream([[1, 2, 3]], **BUDGET)
        assert peer.stream([[1, 2, 3]], **BUDGET)["nll"] == [[0.5, 0.25]]
