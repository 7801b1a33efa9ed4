"""llama.cpp computes what the engine computes, from the project's own GGUF."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.gguf import export_gguf
from ember.peers.client import Peer, PeerFailed
from ember.text.tokenizer import save_tokenizer, train_bpe
from tests.tiny import wild

PROMPT, NEW = [5, 17, 250, 3, 99, 42, 7], 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose greedy text is not a repetition of one token: larger random weights."""
    decoder = wild(
        seed=3,
        hidden_size=64,
        intermediate_size=128,
        head_dim=32,
        vocab_size=300,
        rope_theta=1e5,
        tie_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = save_decoder(decoder, tmp_path_factory.mktemp("peer") / "model")
    save_tokenizer(train_bpe(["the quick brown fox, 12345 times"] * 5, 280), folder)
    return folder


def greedy(model, dtype="float32"):
    engine = Engine(load_decoder(model, dtype=getattr(torch, dtype)), capacity=64)
    [[completion]] = engine.generate([PROMPT], SamplingParams(max_tokens=NEW))
    return list(completion.tokens)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_greedy_tokens_equal_the_engines(model, tmp_path, llama_python, with_tokenizer):
    gguf = export_gguf(model, model if with_tokenizer else None, tmp_path / "model.gguf")
    setup = {"model": str(model), "gguf": str(gguf), "weights": "files", "device": "cpu"}
    setup |= {
        "dtype": "float32",
        "threads": 1,
        "seed": 0,
        "capacity": 64,
        "arguments": {},
        "candidates": 3,
    }
    expected = greedy(model)
    assert len(set(expected)) > 5, "a text of one token would prove little"
    with Peer("llama_cpp_decode", llama_python, setup, timeout_s=120) as peer:
        ready = peer.start()
        assert ready["weights_format"] == "GGUF F32"
        for _ in range(2):  # the second run begins with an empty cache again
            assert peer.generate([PROMPT], NEW)["tokens"] == [[expected]]
        # Candidates that decode together over one prompt's KV, greedily and drawn.
        twice = peer.generate([PROMPT, PROMPT[:4]], NEW, candidates=3)["tokens"]
        assert twice[0] == [expected] * 3
        drawn = peer.generate([PROMPT], NEW, candidates=3, temperature=1.0)["tokens"]
        assert len({tuple(one) for one in drawn[0]}) == 3


def test_a_file_that_is_no_gguf_fails_with_its_name(model, tmp_path, llama_python):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    setup = {"model": str(model), "gguf": str(bad), "weights": "files", "device": "cpu"}
    setup |= {
        "dtype": "float32",
        "threads": 1,
        "seed": 0,
        "capacity": 64,
        "arguments": {},
        "candidates": 3,
    }
    with (
        pytest.raises(PeerFailed, match=r"bad\.gguf"),
        Peer("llama_cpp_decode", llama_python, setup, timeout_s=60) as peer,
    ):
        peer.start()
