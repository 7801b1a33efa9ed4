import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ember.model import families, presets
from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.families import ACTIVATIONS, FAMILIES, Family
from ember.model.gguf import BadGguf, export_gguf
from ember.model.presets import PRESETS
from ember.model.rope import BadArchitecture, RopeScaling, UnsupportedModel
from tests.tiny import decoder_of, draw

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
        ("gemma-3-270m", 268_098_176),
        ("gemma-3-1b", 999_885_952),
        ("pythia-160m", 162_322_944),
        ("pythia-2.8b", 2_775_208_960),
    ],
)
def test_presets_have_the_published_parameter_counts(preset, parameters):
    assert Architecture.make(preset).parameter_count() == parameters


def test_kv_bytes_of_qwen3_4b():
    assert Architecture.make("qwen3-4b").kv_bytes_per_token(2) == 147_456


@st.composite
def expressible(draw) -> Architecture:
    """Small architectures that their family's config can express."""
    model_type = draw(st.sampled_from(sorted(FAMILIES)))
    optional = {
        "tie_embeddings": st.booleans(),
        "rope_theta": st.sampled_from([1e4, 1e6]),
        "rope_scaling": st.sampled_from([None, RopeScaling(4.0), RopeScaling(8.0, 1.0, 4.0, 32)]),
        "eos_token_id": st.sampled_from([None, 3, (3, 4)]),
        "norm_eps": st.sampled_from([1e-5, 1e-6]),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
    }
    given = draw(st.fixed_dictionaries({}, optional=optional))
    if model_type != "qwen2":
        given["qkv_bias"] = given["o_bias"] = draw(st.booleans())
    if model_type == "gemma3_text":
        given["query_scalar"] = draw(st.sampled_from([None, 24]))
        given["sliding_window"] = draw(st.integers(1, 9))
        given["sliding_layers"] = draw(st.sampled_from([(), (0,), (1,), (0, 1)]))
        given["rope_local_theta"] = draw(st.sampled_from([1e3, 1e4]))
    if model_type == "gpt_neox":
        given["num_kv_heads"] = SIZES["num_heads"]
        given["parallel_residual"] = draw(st.booleans())
        given["rope_fraction"] = draw(st.sampled_from([0.25, 0.5, 1.0]))
    return Architecture.make(model_type=model_type, **SIZES | given)


@settings(max_examples=60, deadline=None)
@given(expressible())
def test_config_round_trip(arch):
    assert Architecture.from_hf(json.loads(json.dumps(arch.to_hf()))) == arch


@settings(max_examples=30, deadline=None)
@given(expressible())
def test_transformers_keeps_what_the_config_says(arch):
    from transformers import AutoConfig

    read = AutoConfig.for_model(**json.loads(json.dumps(arch.to_hf()))).to_dict()
    assert Architecture.from_hf(read) == arch


def test_transformers_reads_the_config_as_the_same_model():
    from transformers import AutoConfig

    for arch in map(Architecture.make, PRESETS):
        config = arch.to_hf()
        read = AutoConfig.for_model(**config).to_dict()
        assert Architecture.from_hf(read) == arch


def test_reads_the_config_style_of_transformers_4():
    config = Architecture.make("llama-3.2-1b").to_hf()
    rope = config.pop("rope_parameters")
    rope.pop("rope_theta")
    config["rope_scaling"] = rope
    assert Architecture.from_hf(config) == Architecture.make("llama-3.2-1b")


# As they stand in the models' repositories, written by Transformers 4, less what is not read.
PUBLISHED = {
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "pythia-2.8b": {
        "model_type": "gpt_neox",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_reads_published_configs(preset):
    assert Architecture.from_hf(PUBLISHED[preset]) == Architecture.make(preset)


def test_a_family_of_known_features_is_one_entry(tmp_path, monkeypatch):
    """As CONTRIBUTING tells: nothing else has to learn of it."""
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    families.register(
        Family(
            "newcomer",
            "NewcomerForCausalLM",
            fixed={"qk_norm": True, "norm": "layer"},
            flags={"use_parallel_residual": ("parallel_residual",)},
            eps_key="layer_norm_eps",
            base="decoder.",
            renamed={"wte": "embed_tokens", "ln_f": "norm"},
        )
    )
    arch = Architecture.make(model_type="newcomer", parallel_residual=True, **SIZES)
    assert Architecture.from_hf(json.loads(json.dumps(arch.to_hf()))) == arch
    assert (arch.norm, arch.qk_norm) == ("layer", True)
    decoder = decoder_of(arch, dtype=torch.float32)
    folder = save_decoder(decoder, tmp_path / "model")
    assert "decoder.wte.weight" in load_file(folder / "model.safetensors")
    loaded = load_decoder(folder)
    tokens = draw(2, 7, arch.vocab_size)
    with torch.inference_mode():
        assert torch.equal(loaded.logits(loaded(tokens)), decoder.logits(decoder(tokens)))
    with pytest.raises(BadGguf, match="does not support tensors of this newcomer"):
        export_gguf(folder, None, tmp_path / "model.gguf")


def test_a_preset_is_one_entry(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", dict(PRESETS))
    presets.register("tiny-llama", "llama", **SIZES)
    assert Architecture.make("tiny-llama") == Architecture.make(model_type="llama", **SIZES)
    with pytest.raises(BadArchitecture, match=r"preset 'tiny-lama'(.|\n)*mean 'tiny-llama'"):
        Architecture.make("tiny-lama")


def test_gemma_layers_slide_but_every_sixth():
    arch = Architecture.make("gemma-3-1b")
    assert [layer for layer in range(26) if arch.window(layer) is None] == [5, 11, 17, 23]
    assert arch.window(0) == 512
    assert arch.rope_is_local(0)
    assert not arch.rope_is_local(5)
    assert Architecture.make("gemma-3-1b", num_layers=7).sliding_layers == (0, 1, 2, 3, 4, 6)
    some = Architecture.make("gemma-3-1b", num_layers=3, sliding_layers=[1])
    assert some.sliding_layers == (1,)
    every_other = PUBLISHED["gemma-3-1b"] | {"sliding_window_pattern": 2}
    assert Architecture.from_hf(every_other).sliding_layers == tuple(range(0, 26, 2))


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
        ({"rope_fraction": 0.4}, "3 of a head_dim of 8"),
        ({"rope_fraction": 0.0}, "0 of a head_dim of 8"),
        ({"rope_fraction": 1.5}, "12 of a head_dim of 8"),
        ({"norm": "batch"}, "norm is 'batch'(.|\n)*rms_offset"),
        ({"activation": "relu"}, "activation is 'relu'(.|\n)*gelu_tanh"),
        ({"sliding_layers": (0,)}, "window of None"),
        ({"sliding_window": 4, "sliding_layers": (2,)}, r"sliding_layers are \(2,\)"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_layer": 2}, "Did you mean 'num_layers'"),
        ({"model_type": "mamba"}, "Supported model types: (.*, )?gemma3_text, gpt_neox, llama"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises((BadArchitecture, UnsupportedModel), match=message):
        Architecture.make(**{"model_type": "qwen3"} | SIZES | change)


def test_half_a_rotary_scaling_is_refused():
    with pytest.raises(BadArchitecture, match="factor alone"):
        RopeScaling(8.0, original_max_positions=32)


def test_missing_sizes_and_unknown_presets_are_named():
    with pytest.raises(BadArchitecture, match="lacks hidden_size"):
        Architecture.make(model_type="qwen3")
    with pytest.raises(BadArchitecture, match=r"unknown preset 'qwen9'(.|\n)*qwen3-4b"):
        Architecture.make("qwen9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "'gemma3' is not supported(.|\n)*qwen3"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
    ],
)
def test_unsupported_configs_are_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message):
        Architecture.from_hf(Architecture.make("qwen3-0.6b").to_hf() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
        ({"layer_types": ["full_attention"] * 3}, "of 26 layers"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "scaling of sliding layers",
        ),
    ],
)
def test_what_gemma_may_have_but_the_decoder_has_not_is_refused(change, message):
    with pytest.raises(UnsupportedModel, match=message):
        Architecture.from_hf(PUBLISHED["gemma-3-1b"] | change)


def test_an_incomplete_config_names_the_missing_key():
    config = Architecture.make("qwen3-0.6b").to_hf()
    del config["vocab_size"]
    with pytest.raises(BadArchitecture, match="vocab_size"):
        Architecture.from_hf(config)
