"""Packed weights in and out: directories, `.dat`, compressed-tensors' layout, and back to dense."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ember.commands.main import main
from ember.formats.base import FormatError
from ember.formats.registry import FORMATS
from ember.lowbit.training import ARMS, Control, finish, make_trainable
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.folder import BadCheckpoint
from ember.model.packed import PACKED, PackedLinear, quantise_decoder
from ember.model.packed_folder import (
    import_state,
    load_packed,
    packed_state,
    save_compressed,
    save_packed,
)
from ember.optim.loss import next_token_loss
from tests.tiny import ARCHITECTURES, wild

SIZE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


def logits(decoder):
    with torch.inference_mode():
        return decoder.logits(decoder(TOKENS))


@pytest.mark.parametrize("kind", sorted(PACKED))
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_packed_directory_loads_to_the_same_bits(tmp_path, model_type, kind):
    decoder = wild(model_type, **SIZE)
    quantise_decoder(decoder, kind)
    save_packed(decoder, tmp_path / "packed", weights="trained")
    again = load_decoder(tmp_path / "packed")
    assert torch.equal(logits(again), logits(decoder))
    packed = [m for m in again.modules() if isinstance(m, PackedLinear)]
    assert {m.format for m in packed} == {kind}


def test_the_command_packs_writes_dat_and_comes_back(tmp_path, capsys):
    source = wild("qwen3", **SIZE, tie_embeddings=True)
    folder = save_decoder(source, tmp_path / "dense")
    out, dat = tmp_path / "packed", tmp_path / "model.dat"
    given = ["quantise", str(folder), "--dtype", "float32"]
    assert main([*given, "--out", str(out), "--head", "--dat", str(dat)]) == 0
    packed = load_decoder(out)
    assert isinstance(packed.lm_head, PackedLinear)
    # HF -> NVFP4 -> HF: dense again, its values are those of the codes.
    dense = ["quantise", str(out), "--format", "dense", "--dtype", "float32"]
    assert main([*dense, "--out", str(tmp_path / "back")]) == 0
    back = load_decoder(tmp_path / "back")
    torch.testing.assert_close(logits(back), logits(packed))
    # And again: codes of what codes stand for are the same codes.
    quantise_decoder(back, "nvfp4", skip=())
    assert torch.equal(back.layers[1].mlp.up_proj.qdata, packed.layers[1].mlp.up_proj.qdata)
    again = tmp_path / "from_dat"
    assert main([*given, "--from-dat", str(dat), "--format", "dense", "--out", str(again)]) == 0
    torch.testing.assert_close(logits(load_decoder(again)), logits(packed))
    assert "MB of dense weights" in capsys.readouterr().out
    assert main([*given, "--format", "nvfp5", "--out", str(out)]) == 1
    assert "nvfp4" in capsys.readouterr().err


def test_compressed_tensors_layout_is_written_and_read(tmp_path):
    decoder, other = wild("qwen3", **SIZE), wild("qwen3", seed=5, **SIZE)
    quantise_decoder(decoder, "nvfp4")
    layer, folder = decoder.layers[0].mlp.gate_proj, tmp_path / "out"
    state = load_file(save_compressed(decoder, folder, weights="trained") / "model.safetensors")
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["format"] == "nvfp4-pack-quantized"
    assert "model.layers.0.mlp.gate_proj.weight_packed" in state
    import_state(other, state, "a file")
    torch.testing.assert_close(logits(other), logits(decoder))
    # As the format is described: E2M1 code, low nibble first, times scale over global scale.
    weight = state["model.layers.0.mlp.gate_proj.weight_packed"]
    scale = state["model.layers.0.mlp.gate_proj.weight_scale"].float()
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.stack([weight & 15, weight >> 4], -1).flatten(1).long()
    whole = values[codes] * scale.repeat_interleave(16, 1)
    whole = whole / state["model.layers.0.mlp.gate_proj.weight_global_scale"]
    torch.testing.assert_close(layer.matrix.dense(), whole, rtol=1e-6, atol=0)


def test_trained_weights_are_written_back_with_the_head(tmp_path):
    decoder = wild("qwen3", **SIZE)
    control = Control(ARMS["stochastic"], generator=torch.Generator())
    make_trainable(decoder, control)
    with control.update(0.05):
        next_token_loss(decoder, torch.randint(0, 61, (2, 9))).backward()
    trained = logits(decoder)
    finish(decoder)
    save_packed(decoder, tmp_path / "out", weights="trained")
    torch.testing.assert_close(logits(load_packed(tmp_path / "out")), trained)


def test_what_compressed_tensors_has_no_layout_for_is_refused(tmp_path):
    for model_type, kind, skip in (
        ("qwen3", "int4", ("lm_head",)),
        ("qwen3", "nvfp4", ()),
        ("gpt_neox", "nvfp4", ("lm_head",)),
    ):
        decoder = wild(model_type, **SIZE)
        quantise_decoder(decoder, kind, skip=skip)
        with pytest.raises(BadCheckpoint, match="dense head"):
            save_compressed(decoder, tmp_path / "out", weights="trained")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_by_name():
    decoder = wild("qwen3", **SIZE)
    quantise_decoder(decoder, "nvfp4")
    state = packed_state(decoder)
    name = "layers.0.mlp.up_proj.weight"

    def refused(change, error, said):
        changed = dict(state)
        change(changed)
        with pytest.raises(error, match=said):
            import_state(wild("qwen3", **SIZE), changed, "the file")

    refused(lambda s: s.pop(f"{name}.scale"), FormatError, r"up_proj: codes or scales are missing")
    refused(lambda s: s.pop("norm.weight"), BadCheckpoint, "lacks 1 tensors, 'norm.weight'")
    refused(lambda s: s.update(x=torch.ones(1)), BadCheckpoint, "'x' of shape")
    refused(
        lambda s: s.update({f"{name}.scale": s[f"{name}.scale"][:, :1]}),
        FormatError,
        "belong to no packed format",
    )
    refused(
        lambda s: s.update({"layers.9.mlp.up_proj.weight.qdata": state[f"{name}.qdata"]}),
        BadCheckpoint,
        "no such layer",
    )
    assert "nvfp4" in FORMATS
