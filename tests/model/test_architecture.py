import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.model.architecture import (
    FAMILIES,
    PRESETS,
    Architecture,
    BadArchitecture,
    RopeScaling,
    UnsupportedModel,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_positions": 64,
}


# Parameter counts as published on the model cards (safetensors metadata).
@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen2.5-0.5b", 494_032_768),
        ("llama-3.2-1b", 1_235_814_400),
    ],
)
def test_presets_have_the_published_parameter_counts(preset, parameters):
    assert PRESETS[preset].parameter_count() == parameters


def test_kv_bytes_of_qwen3_4b():
    assert PRESETS["qwen3-4b"].kv_bytes_per_token(2) == 147_456


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, RopeScaling(8.0, 1.0, 4.0, 32)]),
    st.sampled_from([None, 3, (3, 4)]),
)
def test_config_round_trip(model_type, tied, bias, scaling, eos):
    fields = SIZES | {"tie_embeddings": tied, "rope_scaling": scaling, "eos_token_id": eos}
    if model_type != "qwen2":
        fields |= {"qkv_bias": bias, "o_bias": bias}
    arch = Architecture.make(model_type=model_type, **fields)
    assert Architecture.from_hf(json.loads(json.dumps(arch.to_hf()))) == arch


def test_transformers_reads_the_config_as_the_same_model():
    from transformers import AutoConfig

    for arch in PRESETS.values():
        config = arch.to_hf()
        read = AutoConfig.for_model(**config).to_dict()
        assert Architecture.from_hf(read) == arch


def test_reads_the_config_style_of_transformers_4():
    config = PRESETS["llama-3.2-1b"].to_hf()
    rope = config.pop("rope_parameters")
    rope.pop("rope_theta")
    config["rope_scaling"] = rope
    assert Architecture.from_hf(config) == PRESETS["llama-3.2-1b"]


def test_a_config_that_cannot_express_the_architecture_is_refused():
    arch = Architecture.make(model_type="llama", qk_norm=True, **SIZES)
    with pytest.raises(BadArchitecture, match="cannot express"):
        arch.to_hf()


def test_make_gives_the_family_its_switches_and_a_preset_its_sizes():
    assert Architecture.make(model_type="qwen3", **SIZES).qk_norm
    assert Architecture.make(model_type="qwen2", **SIZES).qkv_bias
    smaller = Architecture.make("qwen3-4b", num_layers=2)
    assert (smaller.num_layers, smaller.hidden_size) == (2, 2560)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 7}, "even"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_layer": 2}, "Did you mean num_layers"),
        ({"model_type": "mamba"}, "Supported model types: llama, qwen2, qwen3"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises((BadArchitecture, UnsupportedModel), match=message):
        Architecture.make(**{"model_type": "qwen3"} | SIZES | change)


def test_missing_sizes_and_unknown_presets_are_named():
    with pytest.raises(BadArchitecture, match="lacks hidden_size"):
        Architecture.make(model_type="qwen3")
    with pytest.raises(BadArchitecture, match=r"unknown preset 'qwen9'(.|\n)*qwen3-4b"):
        Architecture.make("qwen9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox' is not supported(.|\n)*qwen3"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
    ],
)
def test_unsupported_configs_are_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message):
        Architecture.from_hf(PRESETS["qwen3-0.6b"].to_hf() | change)


def test_an_incomplete_config_names_the_missing_key():
    config = PRESETS["qwen3-0.6b"].to_hf()
    del config["vocab_size"]
    with pytest.raises(BadArchitecture, match="vocab_size"):
        Architecture.from_hf(config)
