"""Rotation as configs of Transformers 4 and 5 say it: what Transformers makes of it, or refused."""

import copy

import pytest
import torch

from ember.model.architecture import Architecture
from ember.model.decoder import rotary_frequencies
from ember.model.rope import BadArchitecture, UnsupportedModel

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "sliding_window": 8,
}
DEFAULT = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "factor": 4.0}
OLD_LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NO_CONTEXT = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
FLAT = {
    "neither": {},
    "base": {"rope_theta": 7e4},
    "new": {"rope_parameters": DEFAULT},
    "new, no kind": {"rope_parameters": {"rope_theta": 5e5}},
    "new, scaled": {"rope_parameters": LINEAR | {"rope_theta": 2e4}},
    "new, llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 2e4}},
    "old": {"rope_scaling": OLD_LINEAR, "rope_theta": 7e4},
    "old, no base": {"rope_scaling": LINEAR},
    "old, llama3": {"rope_scaling": LLAMA3},
    "old, with a base": {"rope_scaling": LINEAR | {"rope_theta": 3e4}, "rope_theta": 7e4},
    "old, of kind default": {"rope_scaling": {"type": "default", "factor": 2.0}},
    "both": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
    "both, and a base": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR, "rope_theta": 7e4},
    "both, one null": {"rope_parameters": DEFAULT, "rope_scaling": None},
    "both, one empty": {"rope_parameters": DEFAULT, "rope_scaling": {}},
    "both, scaled twice": {"rope_parameters": LLAMA3 | DEFAULT, "rope_scaling": LINEAR},
    "llama3 without its context": {"rope_parameters": NO_CONTEXT | {"rope_theta": 1e4}},
    "a context above": {
        "rope_parameters": LLAMA3 | {"rope_theta": 1e4},
        "original_max_position_embeddings": 16,
    },
    "part of a head, unscaled": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}},
}
NEOX = {
    "own names": {"rotary_emb_base": 7e4, "rotary_pct": 0.5},
    "own names and new": {"rope_parameters": DEFAULT, "rotary_pct": 0.5, "rotary_emb_base": 7e4},
    "new": {"rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0}, "rotary_pct": 0.5},
    "old": {"rope_scaling": OLD_LINEAR | {"partial_rotary_factor": 1.0}},
}
NESTED = {"full_attention": DEFAULT, "sliding_attention": {"rope_theta": 2e4}}
GEMMA = {
    "neither": {},
    "bases": {"rope_theta": 7e4, "rope_local_base_freq": 3e3},
    "nested": {"rope_parameters": NESTED},
    "nested, and bases": {
        "rope_parameters": NESTED,
        "rope_theta": 7e4,
        "rope_local_base_freq": 3e3,
    },
    "nested, one": {"rope_parameters": {"full_attention": LINEAR}, "rope_theta": 7e4},
    "nested, null": {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": None}},
    "old": {"rope_scaling": LINEAR, "rope_theta": 7e4},
    "old, llama3": {"rope_scaling": LLAMA3},
    "both": {"rope_parameters": NESTED, "rope_scaling": LINEAR},
    "both, scaled twice": {
        "rope_parameters": NESTED | {"full_attention": LINEAR | {"rope_theta": 2e4}},
        "rope_scaling": {"factor": 2.0},
    },
}
CASES = [
    *((kind, name, case) for kind in ("qwen3", "qwen2", "llama") for name, case in FLAT.items()),
    *(("gpt_neox", name, case) for name, case in (FLAT | NEOX).items() if "part" not in name),
    *(("gemma3_text", name, case) for name, case in GEMMA.items()),
]


@pytest.mark.parametrize(("kind", "name", "case"), CASES, ids=[f"{k}-{n}" for k, n, _ in CASES])
def test_frequencies_are_those_of_transformers(kind, name, case):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {"model_type": kind} | SIZES | case
    if kind == "gemma3_text":
        config["layer_types"] = ["sliding_attention", "full_attention"]
    arch = Architecture.from_hf(copy.deepcopy(config))
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)))
    found = {
        name.rpartition(".")[2]: buffer
        for name, buffer in theirs.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }
    ours = {"inv_freq": rotary_frequencies(arch, torch.device("cpu"))}
    if kind == "gemma3_text":
        ours = {
            "full_attention_inv_freq": ours["inv_freq"],
            "sliding_attention_inv_freq": rotary_frequencies(arch, torch.device("cpu"), local=True),
        }
    assert found.keys() == ours.keys()
    for name, frequencies in ours.items():
        torch.testing.assert_close(found[name], frequencies)


YARN = {"factor": 4.0, "rope_type": "yarn"}


@pytest.mark.parametrize(
    ("kind", "case", "message"),
    [
        ("qwen3", {"rope_parameters": DEFAULT, "rope_scaling": YARN}, "scaling 'yarn'"),
        ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaling 'dynamic'"),
        ("llama", {"rope_parameters": NESTED}, "by kind of layer"),
        (
            "llama",
            {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
            "part of each",
        ),
        ("gpt_neox", {"rope_parameters": DEFAULT, "rope_scaling": YARN}, "scaling 'yarn'"),
        ("gemma3_text", {"rope_parameters": NESTED, "rope_scaling": YARN}, "scaling 'yarn'"),
        ("gemma3_text", {"rope_parameters": {"full_attention": YARN}}, "scaling 'yarn'"),
        ("gemma3_text", {"rope_parameters": DEFAULT}, "not by kind of layer"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": LINEAR}}, "sliding layers"),
    ],
)
def test_what_the_decoder_does_not_rotate_is_refused(kind, case, message):
    with pytest.raises(UnsupportedModel, match=message):
        Architecture.from_hf({"model_type": kind} | SIZES | case)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"rope_scaling": [1]}, "'rope_scaling' = .* not an object"),
        ({"rope_scaling": OLD_LINEAR | {"rope_type": "default"}}, "type 'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'rope_scaling' lacks 'factor'"),
        ({"rope_scaling": LINEAR | {"factor": "4"}}, "not a number"),
        ({"rope_scaling": LINEAR | {"factor": 0}}, "'factor' = 0"),
        ({"rope_theta": -1}, "'rope_theta' = -1"),
        ({"rope_theta": 10**400}, "'rope_theta' = 1000"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "greater than low_freq_factor"),
    ],
)
def test_what_is_wrong_is_named(case, message):
    with pytest.raises(BadArchitecture, match=message):
        Architecture.from_hf({"model_type": "llama"} | SIZES | case)
