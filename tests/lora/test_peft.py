"""Adapters to and from PEFT, and files that are refused before anything changes."""

import json
import logging
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.lora.adapter import ATTENTION, Adapter, BadAdapter
from ember.lora.merge import Merger
from ember.lora.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from tests.lora.adapters import adapter_of, logits, saved
from tests.tiny import wild

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def peer_logits(model, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (2, 12), generator=generator)
    with torch.inference_mode():
        return model(tokens).logits.float()


def peer_of(decoder, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        saved(decoder, folder / "model"), dtype=torch.float32
    )
    return model.eval()


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "mlp": {"target_modules": ["gate_proj", "down_proj", "q_proj"]},
    "regex": {"target_modules": r".*layers\.[02]\.self_attn\.(q|k)_proj"},
    "some layers": {"layers_to_transform": [1]},
    "patterns": {
        "rank_pattern": {"k_proj": 2, r"layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"v_proj": 5, r"layers\.0\..*o_proj": 7},
    },
    "gaussian": {"init_lora_weights": "gaussian"},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_peft_writes_gives_its_logits(option, tmp_path):
    decoder = wild()
    torch.manual_seed(5)  # PEFT draws A: how far roundings take the logits apart depends on it
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(ATTENTION)} | OPTIONS[option]
    model = peft.get_peft_model(peer_of(decoder, tmp_path), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    before = logits(decoder)
    Merger(decoder).swap(load_adapter(tmp_path / "adapter"))
    expected = peer_logits(model)
    assert (expected - before).abs().max() > 0.05
    assert torch.allclose(logits(decoder), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["uniform", "ranks and layers differ", "bfloat16"])
def test_what_is_written_peft_loads_with_equal_logits(kind, tmp_path, caplog):
    decoder = wild()
    adapter = adapter_of(decoder, rank=4)
    if kind == "ranks and layers differ":
        more = adapter_of(decoder, 2, rank=3, alpha=1.7, projections=("q_proj", "up_proj"))
        parts = {**adapter.only(layers=[0, 1]), **more.only(layers=[1, 2])}
        adapter = Adapter(parts)
    folder = tmp_path / "adapter"
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    save_adapter(adapter, folder, arch=decoder.arch, base="tiny", dtype=dtype)
    found = load_adapter(folder)
    if kind == "bfloat16":
        adapter = found
    assert found.hash == adapter.hash
    with caplog.at_level(logging.WARNING):
        model = peft.PeftModel.from_pretrained(peer_of(decoder, tmp_path), folder).eval()
    assert not [r for r in caplog.records if "missing" in r.message.lower()]
    Merger(decoder).swap(adapter)
    assert torch.allclose(logits(decoder), peer_logits(model), atol=2e-5)


def test_the_user_scale_multiplies_the_adapters_own(tmp_path):
    decoder = wild()
    adapter = adapter_of(decoder)
    save_adapter(adapter, tmp_path / "a", arch=decoder.arch)
    assert load_adapter(tmp_path / "a", scale=0.5).hash == adapter.scaled(0.5).hash


@pytest.fixture
def folder(tmp_path):
    decoder = wild()
    return save_adapter(adapter_of(decoder), tmp_path / "good", arch=decoder.arch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"an_option_of_next_year": 1}, "an_option_of_next_year"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 8}, "gives it rank 8"),
        ({"r": "4"}, "not a whole number"),
        ({"rank_pattern": {"q_proj": 3}}, "gives it rank 3"),
        ({"rank_pattern": {"(": 3}}, "regular expression"),
        ({"lora_alpha": "16"}, "not a number"),
        ({"r": [4]}, "not a whole number"),
        ({"r": 0}, "from 1 on"),
        ({"lora_alpha": True}, "not a number"),
        ({"rank_pattern": [4]}, "not an object"),
        ({"rank_pattern": {"(a+)+$": 3}}, "repeats groups"),
        ({"rank_pattern": {".*" * 30 + "z": 3}}, "repeats too often"),
        ({"use_rslora": "yes"}, "not true or false"),
        ({"peft_type": ["LORA"]}, "not a text"),
    ],
)
def test_configurations_that_are_refused(folder, change, message):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadAdapter, match=message) as caught:
        load_adapter(folder)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_and_truncated_files(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadAdapter, match=r"truncated|valid JSON"):
        load_adapter(folder)
    (folder / name).unlink()
    with pytest.raises(BadAdapter, match="is missing"):
        load_adapter(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder):
    for name in (CONFIG, WEIGHTS):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(BadAdapter, match="a pipe, a socket or a device"):
            load_adapter(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)


def edited(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


# What PEFT, too, puts on no layer of a text model, but without a word.
OF_OTHER_MODULES = [
    "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.cross_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.inner.q_proj.lora_A.weight",
    "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
    "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(FIRST), "no lora_A"),
        (lambda t: t.update({FIRST: t[FIRST].to(torch.int8)}), "is I8"),
        (lambda t: t.update({FIRST: t[FIRST].to(torch.complex64)}), "is C64"),
        (lambda t: t.update({FIRST: t[FIRST][:2].clone()}), "gives it rank"),
        (lambda t: t.update({FIRST: t[FIRST][0].clone()}), "a factor is a matrix"),
        (lambda t: t.update({FIRST: torch.full_like(t[FIRST], torch.inf)}), "NaN or infinity"),
        (lambda t: t.update({"lm_head.weight": t[FIRST].clone()}), "no factor of a linear layer"),
        *(
            (lambda t, name=name: t.update({name: t[FIRST].clone()}), re.escape(name[:25]))
            for name in OF_OTHER_MODULES
        ),
        (lambda t: t.clear(), "changes nothing"),
    ],
)
def test_tensors_that_are_refused(folder, edit, message):
    edited(folder, edit)
    with pytest.raises(BadAdapter, match=message):
        load_adapter(folder)


def test_projections_without_a_counterpart_are_not_written(tmp_path):
    decoder = wild()
    part = next(iter(adapter_of(decoder).values()))
    with pytest.raises(BadAdapter, match="no counterpart"):
        save_adapter(Adapter({(0, "qkv"): part}), tmp_path / "a", arch=decoder.arch)
    assert not (tmp_path / "a").exists()
