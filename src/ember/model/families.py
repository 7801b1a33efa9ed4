"""What each Hugging Face model type fixes, and how its config and tensors say the rest.

A family is one entry of `FAMILIES`: an architecture whose features the decoder has costs one
`register`. Everything here is about files of Transformers; the decoder never asks which family a
model belongs to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ember.model.rope import THETA, Rope, UnsupportedModel, chosen, read_rope, write_rope
from ember.records.foreign import Fields, shown

# What Transformers calls our activations, and what else it calls them.
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
HF_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
SLIDING, FULL = "sliding_attention", "full_attention"

FAMILIES: dict[str, "Family"] = {}


def _read_llama(config: Fields) -> dict:
    theta = config.get("rope_theta", float, 1e4, **THETA)
    return _scaled(read_rope(config, chosen(config), theta))


def _scaled(rope: Rope) -> dict:
    return {"rope_theta": rope.theta, "rope_scaling": rope.scaling}


def _rope_keys(arch, **more) -> dict:
    """Rotary keys for Transformers 5 (`rope_parameters`) and 4 (the others)."""
    written = write_rope(Rope(arch.rope_theta, scaling=arch.rope_scaling), **more)
    keys = {"rope_theta": arch.rope_theta, "rope_parameters": written}
    return keys if arch.rope_scaling is None else keys | {"rope_scaling": written}


@dataclass(frozen=True)
class Family:
    """A Hugging Face model type. The defaults are Llama's."""

    model_type: str
    hf_class: str
    # Fields of an architecture.
    fixed: Mapping[str, Any] = field(default_factory=dict)  # that its configs cannot change
    usual: Mapping[str, Any] = field(default_factory=dict)  # of one made from sizes alone
    full_layer_every: int | None = None  # of one made from sizes alone; the others slide

    # Keys of config.json.
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # true or false: fields set
    activation_key: str = "hidden_act"
    usual_activation: str = "silu"
    eps_key: str = "rms_norm_eps"
    usual_eps: float = 1e-6
    usual_head_dim: int | None = None  # None: hidden size / heads
    own_kv_heads: bool = False  # every head has its own keys; head_dim follows from the heads
    usually_tied: bool = False
    refused: tuple[str, ...] = ()  # keys that must not be set
    read_more: Callable[[Fields], dict] = _read_llama
    write_more: Callable[[Any], dict] = _rope_keys

    # Tensors of a checkpoint; see `ember.model.names`.
    base: str = "model."  # before every name but the head's
    renamed: Mapping[str, str] = field(default_factory=dict)  # pieces of theirs: ours
    packed_qkv: bool = False  # queries, keys and values in one tensor, head after head

    gguf: str | None = None  # what GGUF calls it; None: cannot be exported

    def read(self, config: Fields) -> dict:
        """Fields of an architecture, from a config's keys."""
        self._refuse(config)
        heads = config.get("num_attention_heads", int, low=1)
        hidden = config.get("hidden_size", int, low=1)
        kv_heads, head_dim = heads, hidden // heads
        if not self.own_kv_heads:
            kv_heads = config.get("num_key_value_heads", int, heads, low=1)
            head_dim = config.get("head_dim", int, self.usual_head_dim or head_dim, low=1)
        found = {
            "model_type": self.model_type,
            "hidden_size": hidden,
            "intermediate_size": config.get("intermediate_size", int),
            "num_layers": config.get("num_hidden_layers", int),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": config.get("vocab_size", int),
            "max_positions": config.get("max_position_embeddings", int),
            "norm_eps": config.get(self.eps_key, float, self.usual_eps, low=0, high=1),
            "activation": HF_ACTIVATIONS[self._activation(config)],
            "tie_embeddings": config.get("tie_word_embeddings", bool, self.usually_tied),
            "bos_token_id": config.get("bos_token_id", int, None, low=0),
            "eos_token_id": token_ids(config, "eos_token_id"),
        }
        for key, names in self.flags.items():
            for name in names:
                found[name] = config.get(key, bool, self.usual.get(name, False))
        return found | self.fixed | self.read_more(config)

    def write(self, arch) -> dict:
        """Keys of a config that Transformers (4 and 5) reads as this architecture."""
        eos = arch.eos_token_id
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_type,
            "hidden_size": arch.hidden_size,
            "intermediate_size": arch.intermediate_size,
            "num_hidden_layers": arch.num_layers,
            "num_attention_heads": arch.num_heads,
            "num_key_value_heads": arch.num_kv_heads,
            "head_dim": arch.head_dim,
            "vocab_size": arch.vocab_size,
            "max_position_embeddings": arch.max_positions,
            self.activation_key: ACTIVATIONS[arch.activation],
            self.eps_key: arch.norm_eps,
            "tie_word_embeddings": arch.tie_embeddings,
            "bos_token_id": arch.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "initializer_range": 0.02,
            "use_cache": True,
            **{key: getattr(arch, names[0]) for key, names in self.flags.items()},
            **self.write_more(arch),
        }

    def _activation(self, config: Fields) -> str:
        return config.get(self.activation_key, str, self.usual_activation)

    def _refuse(self, config: Fields) -> None:
        """A key that changes the computation must not be ignored."""
        if (activation := self._activation(config)) not in HF_ACTIVATIONS:
            raise self._lacks(f"activation {shown(activation)}")
        for key in self.refused:
            if config.content.get(key):
                raise self._lacks(key)
        if self.full_layer_every is None:
            slides = config.get("use_sliding_window", bool, False)
            slides = slides and config.get("sliding_window", int, 0)
            kinds = config.items_of("layer_types", str) or []
            if {*kinds} - {FULL} or (slides and not kinds):
                raise self._lacks("sliding-window attention")

    def _lacks(self, what: str) -> UnsupportedModel:
        return unsupported(f"{what} of this {self.model_type} is not supported.")


def register(family: Family) -> None:
    """Makes a family known by its model type."""
    FAMILIES[family.model_type] = family


def family_of(model_type: object) -> Family:
    """The family of a model type. Raises `UnsupportedModel` naming those there are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unsupported(f"model_type {shown(model_type)} is not supported.")
    return FAMILIES[model_type]


def unsupported(cause: str) -> UnsupportedModel:
    """The error that a model cannot be run, with those that can."""
    return UnsupportedModel(
        f"{cause}\nSupported model types: {', '.join(sorted(FAMILIES))} (Qwen3, Qwen2.5, "
        "Llama 3.2, Gemma 3 text, GPT-NeoX and Pythia), with default, linear or llama3 rotary "
        "scaling; see docs/architectures.md."
    )


def token_ids(config: Fields, key: str) -> int | tuple[int, ...] | None:
    """A token, or a list of some, as configs name those that end a text."""
    if isinstance(config.content.get(key), list):
        return tuple(config.items_of(key, int, low=0))
    return config.get(key, int, None, low=0)


def sliding_but_every(every: int, layers: int) -> tuple[int, ...]:
    """Layers that slide where each `every`-th one attends to all tokens."""
    return tuple(layer for layer in range(layers) if (layer + 1) % every)


def _read_gemma3(config: Fields) -> dict:
    """Rotation by kind of layer, and which layers slide, from lists (5.x) or periods (4.x).

    `rope_scaling` is of the layers that attend to all tokens, over what `rope_parameters` say.
    """
    rope = config.object("rope_parameters")
    if {*rope} - {FULL, SLIDING}:
        raise unsupported(f"{rope.where} that are not by kind of layer are not supported here.")
    far = rope.object(FULL).with_values(config.object("rope_scaling"))
    far = read_rope(config, far, config.get("rope_theta", float, 1e6, **THETA))
    theta = config.get("rope_local_base_freq", float, 1e4, **THETA)
    near = read_rope(config, rope.object(SLIDING), theta)
    if near.scaling is not None:
        raise unsupported("rotary scaling of sliding layers is not supported.")
    head_dim = config.get("head_dim", int, 256, low=1)
    scalar = config.get("query_pre_attn_scalar", float, 256.0, low=1e-6)
    return {
        **_scaled(far),
        "rope_local_theta": near.theta,
        "sliding_window": config.get("sliding_window", int),
        "sliding_layers": _read_sliding(config),
        "query_scalar": None if scalar == head_dim else scalar,
    }


def _read_sliding(config: Fields) -> tuple[int, ...]:
    layers = config.get("num_hidden_layers", int, low=1, high=1 << 20)
    if kinds := config.items_of("layer_types", str):
        if len(kinds) != layers or {*kinds} - {FULL, SLIDING}:
            raise unsupported(f"layer_types {shown(kinds)} of {layers} layers are not supported.")
        return tuple(at for at, kind in enumerate(kinds) if kind == SLIDING)
    period = config.get("sliding_window_pattern", int, None, low=0)
    return sliding_but_every(period or config.get("_sliding_window_pattern", int, 6, low=1), layers)


def _write_gemma3(arch) -> dict:
    written = _rope_keys(arch)
    near = write_rope(Rope(arch.rope_local_theta))
    return written | {
        "rope_parameters": {FULL: written["rope_parameters"], SLIDING: near},
        "rope_local_base_freq": arch.rope_local_theta,
        "sliding_window": arch.sliding_window,
        "layer_types": [
            SLIDING if layer in arch.sliding_layers else FULL for layer in range(arch.num_layers)
        ],
        "query_pre_attn_scalar": arch.query_scalar or arch.head_dim,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _read_gpt_neox(config: Fields) -> dict:
    theta = config.get("rotary_emb_base", float, 1e4, **THETA)
    fraction = config.get("rotary_pct", float, 0.25, low=0, high=1)
    rope = read_rope(config, chosen(config), theta, fraction)
    return _scaled(rope) | {"rope_fraction": rope.fraction}


def _write_gpt_neox(arch) -> dict:
    keys = {"rotary_pct": arch.rope_fraction, "rotary_emb_base": arch.rope_theta}
    return _rope_keys(arch, partial_rotary_factor=arch.rope_fraction) | keys


register(
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        fixed={"qk_norm": True},
        flags={"attention_bias": ("qkv_bias", "o_bias")},
        usual_head_dim=128,
        gguf="qwen3",
    )
)
register(Family("qwen2", "Qwen2ForCausalLM", fixed={"qkv_bias": True}, gguf="qwen2"))
register(
    Family(
        "llama",
        "LlamaForCausalLM",
        flags={"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)},
        gguf="llama",
    )
)
register(
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        fixed={
            "norm": "rms_offset",
            "post_norms": True,
            "qk_norm": True,
            "scaled_embedding": True,
        },
        usual={
            "activation": "gelu_tanh",
            "rope_theta": 1e6,
            "rope_local_theta": 1e4,
            "sliding_window": 512,
            "tie_embeddings": True,
        },
        full_layer_every=6,
        flags={"attention_bias": ("qkv_bias", "o_bias")},
        activation_key="hidden_activation",
        usual_activation="gelu_pytorch_tanh",
        usual_head_dim=256,
        usually_tied=True,
        refused=(
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "use_bidirectional_attention",
        ),
        read_more=_read_gemma3,
        write_more=_write_gemma3,
        renamed={
            "post_attention_layernorm": "attn_out_norm",
            "pre_feedforward_layernorm": "post_attention_layernorm",
            "post_feedforward_layernorm": "mlp_out_norm",
        },
        gguf="gemma3",
    )
)
register(
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        fixed={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
        usual={
            "activation": "gelu",
            "norm_eps": 1e-5,
            "parallel_residual": True,
            "qkv_bias": True,
            "o_bias": True,
            "rope_fraction": 0.25,
        },
        flags={
            "attention_bias": ("qkv_bias", "o_bias"),
            "use_parallel_residual": ("parallel_residual",),
        },
        usual_activation="gelu",
        eps_key="layer_norm_eps",
        usual_eps=1e-5,
        own_kv_heads=True,
        read_more=_read_gpt_neox,
        write_more=_write_gpt_neox,
        base="gpt_neox.",
        renamed={
            "embed_in": "embed_tokens",
            "final_layer_norm": "norm",
            "embed_out": "lm_head",
            "attention": "self_attn",
            "dense": "o_proj",
            "dense_h_to_4h": "up_proj",
            "dense_4h_to_h": "down_proj",
        },
        packed_qkv=True,
        gguf="gptneox",
    )
)
