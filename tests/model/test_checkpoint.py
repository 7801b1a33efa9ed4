"""Model directories: round trips with Transformers, and what is wrong with bad ones."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.measure.memory import NotEnoughMemory
from ember.model import checkpoint
from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder, random_decoder, save_decoder
from ember.model.families import FAMILIES
from ember.model.folder import (
    BadCheckpoint,
    check_unchanged,
    eos_token_ids,
    snapshot,
    weights_kind,
)
from ember.model.rope import BadArchitecture, UnsupportedModel
from ember.records.provenance import file_hashes, write_sidecar
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


def untie(state, change=lambda head: head.flip(0)):
    state["lm_head.weight"] = change(state["model.embed_tokens.weight"]).contiguous()


def test_a_head_that_differs_is_kept_though_the_config_ties_it(folder):
    from transformers import AutoModelForCausalLM

    edit_weights(folder, untie)
    loaded = load_decoder(folder)
    assert not loaded.arch.tie_embeddings
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, logits(loaded), atol=1e-5, rtol=0)
    assert snapshot(folder)["parameters"] == loaded.arch.parameter_count()
    again = load_decoder(save_decoder(loaded, folder.with_name("again")))
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("only", [True, False])
def test_a_head_that_is_the_embedding_is_tied(folder, only):
    from transformers import AutoModelForCausalLM

    def edit(state):
        untie(state, torch.clone)
        if only:
            del state["model.embed_tokens.weight"]

    before = logits(load_decoder(folder))
    edit_weights(folder, edit)
    loaded = load_decoder(folder)
    assert loaded.arch.tie_embeddings
    assert torch.equal(logits(loaded), before)
    assert snapshot(folder)["parameters"] == loaded.arch.parameter_count()
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, before, atol=1e-5, rtol=0)


def test_of_one_file_and_an_index_the_file_is_taken_as_transformers_takes_it(folder):
    from transformers import AutoModelForCausalLM

    other = save_decoder(wild(**SIZES, tie_embeddings=True), folder.with_name("other"))
    (other / "model.safetensors").rename(folder / "shard.safetensors")
    index = {"weight_map": {"model.norm.weight": "shard.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        ours = logits(load_decoder(folder))
        torch.testing.assert_close(theirs(TOKENS).logits, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(torch.int8, "I8"), (torch.int64, "I64"), (torch.complex64, "C64"), (torch.bool, "BOOL")],
)
def test_weights_that_are_no_floating_point_numbers_are_refused(folder, kind, name):
    edit_weights(folder, lambda s: s.update({NAME: s[NAME].to(kind)}))
    with pytest.raises(BadCheckpoint, match=f"{NAME}' in .* is {name}"):
        load_decoder(folder)


def test_a_flipped_bit_in_a_model_that_was_trained_here_is_noticed(folder):
    write_sidecar(folder, {"files": file_hashes(folder)})
    load_decoder(folder)
    for name in ("model.safetensors", "config.json", "ember.json"):
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[-3] ^= 1 if name == "model.safetensors" else ord(" ") ^ ord("\n")
        (folder / name).write_bytes(flipped)
        with pytest.raises(BadCheckpoint, match=f"{name} has changed(.|\n)*run the workflow again"):
            check_unchanged(folder)
        if name == "model.safetensors":
            with pytest.raises(BadCheckpoint, match="has changed since the model was trained"):
                load_decoder(folder)
        (folder / name).write_bytes(whole)
    load_decoder(folder)
    (folder / "provenance.json").write_text('{"files": [1]}')
    with pytest.raises(BadCheckpoint, match=r"provenance\.json.*not an object"):
        load_decoder(folder)


def with_index(folder, names) -> None:
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = {"weight_map": {str(at): name for at, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../model/shard.safetensors", "/etc/passwd", "a/../../b", "..", "", "a\nb", "sub/shard", 5],
)
def test_an_index_names_files_of_its_own_folder(folder, name):
    (folder.with_name("elsewhere")).mkdir()
    (folder.with_name("elsewhere") / "shard").write_bytes(b"")
    (folder / "sub").symlink_to(folder.with_name("elsewhere"))
    with_index(folder, ["shard.safetensors", name])
    with pytest.raises(BadCheckpoint) as caught:
        load_decoder(folder)
    assert len(str(caught.value).splitlines()) == 2
    assert "model.safetensors.index.json" in str(caught.value)


def test_links_into_a_cache_of_the_hub_are_followed(folder):
    before = logits(load_decoder(folder))
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../blobs/{number}")
    assert torch.equal(logits(load_decoder(folder)), before)
    with_index(folder, ["shard.safetensors"])
    assert torch.equal(logits(load_decoder(folder)), before)


@pytest.mark.parametrize(
    "name", ["config.json", "ember.json", "model.safetensors", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder, name, kind):
    if "index" in name:
        (folder / "model.safetensors").unlink()
    path = folder / name
    path.unlink(missing_ok=True)
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path.name),
    }[kind]()
    if kind == "loop" and name != "config.json":
        pytest.skip("as if it were not there")
    with pytest.raises(BadCheckpoint, match=f"{name} (is a|is missing|cannot be read)"):
        load_decoder(folder)


def test_sizes_beyond_the_files_are_refused_before_anything_is_allocated(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(checkpoint, "empty_decoder", lambda *_: pytest.fail("allocated"))
    for change, message in (
        ({"num_hidden_layers": 10**9}, r"num_layers is 1000000000(.|\n)*8,192"),
        ({"num_hidden_layers": 8000}, r"have [\d,]+ parameters, but config\.json describes"),
        ({"vocab_size": 10**8}, r"have [\d,]+ parameters, but config\.json describes"),
        ({"vocab_size": 10**400}, "'vocab_size' = 1000"),
        ({"hidden_size": 1e3}, "not a whole number"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((BadCheckpoint, BadArchitecture), match=message):
            load_decoder(folder)


def test_tokens_that_end_a_completion_are_those_that_transformers_ends_at(folder):
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    for own, generation, expected in (
        (None, None, ()),
        (3, None, (3,)),
        ([3, 4], None, (3, 4)),
        (3, {"eos_token_id": [5, 6]}, (5, 6)),
        (3, {"eos_token_id": 7}, (7,)),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": own}))
        (folder / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        assert eos_token_ids(folder) == expected
        theirs = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
        theirs = [] if theirs is None else torch.tensor(theirs).flatten().tolist()
        assert expected == tuple(theirs)
    (folder / "generation_config.json").write_text('{"eos_token_id": ["a"]}')
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json has 'eos_token_id' = 'a'"):
        eos_token_ids(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    shutil.copy(folder / "model.safetensors", folder / "second.safetensors")
    with_index(folder, ["shard.safetensors", "second.safetensors"])
    with pytest.raises(BadCheckpoint, match="repeats one of"):
        load_decoder(folder)
