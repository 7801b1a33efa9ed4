"""`ember c2c pack`, `unpack` and `inspect`, and what they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.commands.main import main

G = torch.Generator().manual_seed(0)


def ember(words: str) -> int:
    return main(["c2c", *words.split()])


@pytest.fixture
def kv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = {
        f"{side}.{n}": torch.randn(5, 2, 8, generator=G)
        for side in ("keys", "values")
        for n in (1, 10, 2)
    }
    tensors["index"] = torch.tensor([0, 2, 3, 7, 8])
    save_file(tensors, "kv.safetensors", metadata={"length": "12", "rotated": "true"})
    return tensors


def test_there_and_back(kv, capsys):
    assert ember("pack kv.safetensors --scheme int8 --axis token --out blob") == 0
    assert ember("inspect blob") == 0
    text = capsys.readouterr().out
    for words in (
        "payload of version 1",
        "5 of 12 tokens; keys after rotation",
        "layer 10: keys int8 by token, 2 x 8; values int8 by token, 2 x 8",
    ):
        assert words in text
    assert ember("inspect blob --json") == 0
    assert json.loads(capsys.readouterr().out)["codes_bytes"] == 6 * 5 * 16
    assert ember("unpack blob --out back.safetensors") == 0
    back = load_file("back.safetensors")
    assert torch.equal(back.pop("index"), kv.pop("index"))
    assert back.keys() == kv.keys()
    assert all((back[name] - kv[name]).abs().max() < 0.02 for name in kv)
    assert ember("pack back.safetensors --scheme fp16 --out raw") == 0
    assert ember("unpack raw --out again.safetensors") == 0
    assert load_file("again.safetensors")["keys.1"].shape == (5, 2, 8)


def test_runs_of_neighbours(kv, capsys):
    del kv["index"]
    save_file(kv, "run.safetensors", metadata={"length": "12", "start": "7"})
    words = "--scheme int4 --axis group --group 8 --asymmetric --out blob"
    assert ember(f"pack run.safetensors {words}") == 0
    assert ember("inspect blob") == 0
    text = capsys.readouterr().out
    assert "5 of 12 tokens, neighbours from 7 on; keys before rotation" in text
    assert "int4 asymmetric by group of 8" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("pack gone.safetensors --out b", "gone.safetensors is missing"),
        ("pack bad.safetensors --out b", "not keys and values of layers"),
        ("pack flat.safetensors --out b", "not (tokens, heads, size)"),
        ("pack long.safetensors --out b", "length = '1e9', which is no number"),
        ("pack kv.safetensors --scheme int5 --out b", "unknown scheme 'int5'"),
        ("pack kv.safetensors --scheme nf4 --axis head --out b", "no scale for each head"),
        ("pack kv.safetensors --group 0 --out b", "a group of 0 values"),
        ("unpack kv.safetensors --out b", "the blob is no payload"),
        ("inspect gone", "gone is missing"),
        ("inspect /dev/zero", "not a file"),
    ],
)
def test_errors_are_one_message(kv, capsys, words, says):
    save_file({"keys.1": torch.zeros(2, 1, 2)}, "bad.safetensors")
    save_file({f"{side}.1": torch.zeros(2, 2) for side in ("keys", "values")}, "flat.safetensors")
    save_file(kv, "long.safetensors", metadata={"length": "1e9"})
    assert ember(words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "Traceback" not in said.err
