"""Model directories: round trips with Transformers, and what is wrong with bad ones."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.measure.memory import NotEnoughMemory
from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder, random_decoder, save_decoder
from ember.model.families import FAMILIES
from ember.model.folder import BadCheckpoint, snapshot, weights_kind
from ember.model.rope import UnsupportedModel
from tests.tiny import tiny, wild

SIZES = {"vocab_size": 51, "max_positions": 64}
TOKENS = torch.arange(24).view(2, 12)


def make(model_type="qwen3", **changes):
    return random_decoder(tiny(model_type, **SIZES | changes), seed=1)


@torch.inference_mode()
def logits(decoder):
    return decoder.logits(decoder(TOKENS))


@pytest.fixture
def folder(tmp_path):
    return save_decoder(make(tie_embeddings=True), tmp_path / "model")


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_transformers_loads_what_is_saved(tmp_path, model_type, tied):
    from transformers import AutoModelForCausalLM

    decoder = wild(model_type, **SIZES, tie_embeddings=tied)
    save_decoder(decoder, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert theirs.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, logits(decoder), atol=1e-5, rtol=0)
    loaded = load_decoder(tmp_path / "model", check_finite=True)
    for (name, kept), (_, saved) in zip(
        loaded.named_parameters(), decoder.named_parameters(), strict=True
    ):
        assert torch.equal(kept, saved), name
    assert snapshot(tmp_path / "model")["parameters"] == decoder.arch.parameter_count()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "gpt_neox"])
def test_shards_that_transformers_saved_are_loaded(tmp_path, model_type, tied):
    from transformers import AutoModelForCausalLM

    save_decoder(wild(model_type, **SIZES, tie_embeddings=tied), tmp_path / "one")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
    theirs.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    loaded = load_decoder(tmp_path / "many")
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, logits(loaded), atol=1e-5, rtol=0)
    assert weights_kind(tmp_path / "many") == "pretrained"
    assert snapshot(tmp_path / "many")["parameters"] == loaded.arch.parameter_count()
    next((tmp_path / "many").glob("*.safetensors")).unlink()
    with pytest.raises(BadCheckpoint, match="is missing"):
        load_decoder(tmp_path / "many")


def test_constants_that_old_checkpoints_keep_are_passed_over(tmp_path):
    """Pythia's files have masks and rotary frequencies among the weights, and -inf in one."""
    decoder = wild("gpt_neox", **SIZES)
    folder = save_decoder(decoder, tmp_path / "model")

    def add(state):
        for layer in range(2):
            name = f"gpt_neox.layers.{layer}.attention."
            state[name + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
            state[name + "masked_bias"] = torch.tensor(-torch.inf)
            state[name + "rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, add)
    torch.testing.assert_close(logits(load_decoder(folder, check_finite=True)), logits(decoder))
    assert snapshot(folder)["parameters"] == decoder.arch.parameter_count()


def test_packed_queries_keys_and_values_of_the_wrong_shape_are_named(tmp_path):
    folder = save_decoder(make("gpt_neox"), tmp_path / "model")
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    edit_weights(folder, lambda s: s.update({name: torch.ones(95, 32)}))
    with pytest.raises(BadCheckpoint, match=r"query_key_value(.|\n)*\(95, 32\)"):
        load_decoder(folder)
    edit_weights(folder, lambda s: s.pop(name))
    with pytest.raises(BadCheckpoint, match=r"lacks 3 tensors(.|\n)*k_proj"):
        load_decoder(folder)


def test_weights_are_loaded_in_the_dtype_asked_for(folder):
    decoder = load_decoder(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    save_decoder(decoder, folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_declared_random_weights_are_drawn_on_load(tmp_path):
    arch = tiny(**SIZES)
    (tmp_path / "config.json").write_text(json.dumps(arch.to_hf()))
    (tmp_path / "ember.json").write_text('{"weights": "random", "seed": 1}')
    assert weights_kind(tmp_path) == "random"
    torch.testing.assert_close(logits(load_decoder(tmp_path)), logits(make()), atol=0, rtol=0)
    assert snapshot(tmp_path)["parameters"] == arch.parameter_count()


def test_random_weights_depend_on_the_seed_alone():
    arch = tiny(**SIZES)
    first, same, other = (logits(random_decoder(arch, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.isfinite(first).all()


def test_saving_keeps_kind_notes_and_extra_files(tmp_path):
    extra = tmp_path / "tokenizer.json"
    extra.write_text("{}")
    folder = save_decoder(
        make(), tmp_path / "model", weights="random", extra_files=[extra], about={"steps": 3}
    )
    assert weights_kind(folder) == "random"
    assert json.loads((folder / "ember.json").read_text())["steps"] == 3
    found = snapshot(folder)
    assert [f["file"] for f in found["files"]] == [
        "config.json",
        "ember.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert all(len(f["sha256"]) == 64 and f["bytes"] > 0 for f in found["files"])
    with pytest.raises(ValueError, match="one of"):
        save_decoder(make(), tmp_path / "model", weights="good")


def test_a_failed_save_leaves_the_old_model(folder):
    before = snapshot(folder)
    with pytest.raises(FileNotFoundError):
        save_decoder(make(), folder, extra_files=["/no/such/file"])
    assert snapshot(folder) == before


def test_missing_directory_and_files_are_named(tmp_path, folder):
    with pytest.raises(BadCheckpoint, match=r"no model directory .*/nowhere"):
        load_decoder(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"holds no model\.safetensors"):
        load_decoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"config\.json is missing"):
        load_decoder(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -10])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadCheckpoint, match="truncated or no safetensors"):
        load_decoder(folder)


NAME = "model.layers.1.self_attn.k_norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(NAME), r"lacks 1 tensors(.|\n)*layers\.1\.self_attn\.k_norm\.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected tensor 'extra'"),
        (lambda s: s.update({NAME: torch.ones(9)}), r"has shape \(9,\)(.|\n)*asks for \(8,\)"),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(BadCheckpoint, match=message):
        load_decoder(folder)


def test_nan_is_refused_on_request(folder):
    edit_weights(folder, lambda s: s[NAME].fill_(torch.nan))
    load_decoder(folder)
    with pytest.raises(BadCheckpoint, match=f"{NAME}' in .* NaN"):
        load_decoder(folder, check_finite=True)


def test_snapshot_refuses_weights_of_another_size(folder):
    edit_weights(folder, lambda s: s.pop(NAME))
    with pytest.raises(BadCheckpoint, match="parameters, but"):
        snapshot(folder)


def test_bad_config_and_kind_are_named(folder):
    (folder / "ember.json").write_text('{"weights": "good"}')
    with pytest.raises(BadCheckpoint, match=r"'weights' = 'good'"):
        load_decoder(folder)
    (folder / "ember.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"ember\.json is not valid JSON"):
        load_decoder(folder)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModel, match="mamba"):
        load_decoder(folder)


def test_a_model_beyond_the_memory_is_refused_before_it_is_made():
    arch = Architecture.make("qwen3-8b", num_layers=8_192)
    with pytest.raises(NotEnoughMemory, match="qwen3 of"):
        random_decoder(arch)


def test_loading_does_not_import_torchs_compiler(folder):
    program = (
        "import sys, torch; before = set(sys.modules); "
        "from ember.model.checkpoint import load_decoder; load_decoder(sys.argv[1]); "
        "print(sorted({'sympy', 'torch._dynamo'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
