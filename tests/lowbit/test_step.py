"""A step in little memory is the same step; what it holds is what it says."""

import json

import pytest
import torch

from ember.cache.contiguous import ContiguousCache
from ember.commands.main import main
from ember.lowbit.step import checkpoint_layers, load_trainable
from ember.lowbit.training import ARMS, Control, TrainedLinear, make_trainable
from ember.measure.live import live_tensors
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.folder import CONFIG, KIND
from ember.optim.loop import BadTraining
from ember.optim.loss import next_token_loss
from tests.tiny import wild

SIZE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
TOKENS = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_decoder(wild("qwen3", scale=0.1, **SIZE), tmp_path_factory.mktemp("m") / "model")


def control(arm="stochastic", **options) -> Control:
    return Control(ARMS[arm], generator=torch.Generator().manual_seed(0), **options)


def train_step(decoder, mine, tokens, rate) -> float:
    with mine.update(rate):
        loss = next_token_loss(decoder, tokens)
        loss.backward()
    return float(loss.detach())


def test_a_loaded_and_checkpointed_step_is_the_plain_one(folder):
    made = []
    for checked in (False, True):
        mine = control("master_float32")
        decoder, layers = load_trainable(folder, mine, "cpu", torch.float32)
        if checked:
            checkpoint_layers(decoder)
        losses = [train_step(decoder, mine, TOKENS, 1e-3) for _ in range(3)]
        made.append((losses, [one.layer.qdata for one in layers]))
    other = load_decoder(folder)
    mine = control("master_float32")
    layers = make_trainable(other, mine)
    losses = [train_step(other, mine, TOKENS, 1e-3) for _ in range(3)]
    for found, codes in made:
        assert found == pytest.approx(losses, rel=1e-6)
        assert all(torch.equal(a, b.layer.qdata) for a, b in zip(codes, layers, strict=True))


def test_checkpointing_refuses_a_cache_and_saves_memory(folder):
    peaks = []
    for checked in (False, True):
        mine = control()
        decoder, _ = load_trainable(folder, mine, "cpu", torch.float32)
        if checked:
            checkpoint_layers(decoder)
        tokens = torch.randint(0, 61, (4, 101))
        with live_tensors([*decoder.parameters(), *decoder.buffers()]) as live:
            train_step(decoder, mine, tokens, 1e-3)
        peaks.append(live.peak_bytes)
    assert peaks[1] < 0.8 * peaks[0]
    with pytest.raises(BadTraining, match="do not go together"):
        decoder(TOKENS, cache=ContiguousCache(decoder.arch, 2, 32))


def test_the_head_trains_untied_and_only_the_last_layers_do(folder):
    mine = control()
    decoder, layers = load_trainable(folder, mine, "cpu", torch.float32, last_layers=1, head=True)
    assert isinstance(decoder.lm_head, TrainedLinear)
    assert len(layers) == 8
    head, embedding = decoder.lm_head.layer.qdata.clone(), decoder.embed_tokens.weight.clone()
    train_step(decoder, mine, TOKENS, 0.05)
    assert not torch.equal(decoder.lm_head.layer.qdata, head)
    assert torch.equal(decoder.embed_tokens.weight, embedding)
    assert not decoder.arch.tie_embeddings
    with pytest.raises(BadTraining, match="Set 1 to 3"):
        load_trainable(folder, mine, "cpu", torch.float32, last_layers=0)


def test_random_weights_are_drawn_by_layer_and_never_dense_together(tmp_path):
    arch = wild("qwen3", **SIZE | {"num_layers": 12, "vocab_size": 32}).arch

    (tmp_path / CONFIG).write_text(json.dumps(arch.to_hf()))
    (tmp_path / KIND).write_text('{"weights": "random", "seed": 3}')
    mine = control(states="none")
    with live_tensors() as live:
        decoder, layers = load_trainable(tmp_path, mine, "cpu", torch.float32)
    assert len(decoder.layers) == 12
    dense = sum(one.in_features * one.out_features for one in layers) * 4
    assert live.peak_bytes < 0.6 * dense  # packed they take a seventh, and one layer is dense
    assert train_step(decoder, mine, TOKENS % 32, 1e-3) > 0


def test_the_command_runs_a_step_and_writes_its_memory(folder, tmp_path, capsys):
    out = tmp_path / "memory.json"
    given = ["train-step", str(folder), "--tokens", "16", "--device", "cpu"]
    assert main([*given, "--states", "none", "--memory-json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [row["phase"] for row in written["phases"]] == ["load", "forward", "backward"]
    last = written["phases"][-1]
    assert last["master_bytes"] == 0 < last["packed_bytes"] < last["peak_bytes"]
    assert "loss" in capsys.readouterr().out
    assert main([*given, "--arm", "nearst"]) == 1
    assert "nearest" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("a few words")
    assert main([*given, "--text", str(tmp_path / "none.txt")]) == 1
    assert "give a UTF-8 text file" in capsys.readouterr().err
