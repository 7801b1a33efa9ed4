"""What a decoder looks like: sizes and switches, without weights.

Contract. An `Architecture` is plain frozen data. It comes from a Hugging Face `config.json`
(`from_hf`), from a known shape (`PRESETS`) or from fields (`Architecture.make`), goes back with
`to_hf`, and knows what follows from sizes alone: parameters and bytes of KV per token. Each switch
stands for a feature the decoder has; the code never asks which family a model belongs to.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from ember.records.errors import EmberError


class BadArchitecture(EmberError):
    """Sizes that contradict each other, or fields nobody knows."""


class UnsupportedModel(EmberError):
    """A model that this decoder cannot run; the message names those it can."""


@dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary wavelengths, for longer contexts than the model was first trained on.

    With `factor` alone all of them (linear); with the other three, as Llama 3 does: only those
    beyond the original context.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None

    def __post_init__(self):
        llama3 = (self.low_freq_factor, self.high_freq_factor, self.original_max_positions)
        if llama3.count(None) not in (0, 3):
            raise BadArchitecture(
                f"rotary scaling has {self}.\n"
                "Give factor alone (linear), or all four numbers (llama3)."
            )

    @property
    def is_llama3(self) -> bool:
        """Whether only long wavelengths are stretched; all of them otherwise."""
        return self.original_max_positions is not None


@dataclass(frozen=True)
class Architecture:
    """Sizes and features of one decoder-only transformer with rotary attention.

    By default what Llama has: pre-norm blocks with RMSNorm, grouped-query attention and a gated
    SiLU MLP.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm: str = "rms"  # see NORMS
    norm_eps: float = 1e-6
    post_norms: bool = False  # norms also of what attention and MLP give, before it is added
    parallel_residual: bool = False  # the MLP reads the layer's input, not attention's output
    qk_norm: bool = False  # a norm over each query and key head, before rotation
    query_scalar: float | None = None  # scores are divided by its root; None: by head_dim's
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_fraction: float = 1.0  # share of a head's dimensions that is rotated, the first ones
    rope_local_theta: float | None = None  # base in sliding layers, unscaled; None: as elsewhere
    sliding_window: int | None = None  # tokens seen in sliding layers, the present one included
    sliding_layers: tuple[int, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True  # act(gate) · up; without a gate act(up)
    activation: str = "silu"  # see ACTIVATIONS
    scaled_embedding: bool = False  # embeddings times sqrt(hidden_size)
    tie_embeddings: bool = False  # the head is the embedding matrix
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BadArchitecture(
                    f"architecture.{name} is {value!r}.\nSet it to a whole number above 0."
                )
        if self.num_heads % self.num_kv_heads:
            raise BadArchitecture(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads "
                f"({self.num_kv_heads}).\nGive every KV head the same number of query heads."
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise BadArchitecture(
                f"{self.rotary_dim} of a head_dim of {self.head_dim} are rotated.\n"
                "Rotary embedding pairs dimensions: make head_dim times rope_fraction even."
            )
        for name, known in (("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise BadArchitecture(
                    f"architecture.{name} is {getattr(self, name)!r}.\n"
                    f"Set it to one of {', '.join(known)}."
                )
        if self.sliding_layers != tuple(sorted({*self.sliding_layers} & {*range(self.num_layers)})):
            raise BadArchitecture(
                f"sliding_layers are {self.sliding_layers}.\n"
                f"Give numbers of the {self.num_layers} layers, each once, in order."
            )
        if self.sliding_layers and not (self.sliding_window or 0) > 0:
            raise BadArchitecture(
                f"layers slide over a window of {self.sliding_window!r} tokens.\n"
                "Set sliding_window to a whole number above 0."
            )
        if self.model_type not in FAMILIES:
            raise _unsupported(f"model_type {self.model_type!r} is not supported.")

    @classmethod
    def make(cls, preset: str | None = None, **given) -> "Architecture":
        """An architecture from a preset, from fields over it, or from fields alone.

        Without a preset `model_type` and all sizes are needed; what the family fixes (qk-norm,
        biases) or usually has (rotary bases, which layers slide) has that value unless given.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
                raise BadArchitecture(f"unknown architecture field {name!r}.\n{hint}")
        if preset is not None and preset not in PRESETS:
            raise BadArchitecture(
                f"unknown preset {preset!r}.\nKnown presets: {', '.join(sorted(PRESETS))}."
            )
        given = {  # from YAML they are lists
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        model_type = PRESETS[preset].model_type if preset else given.get("model_type")
        if model_type not in FAMILIES:
            raise _unsupported(f"model_type {model_type!r} is not supported.")
        every = FAMILIES[model_type].full_layer_every
        layers = given.get("num_layers")
        if every is not None and isinstance(layers, int):
            given = {"sliding_layers": sliding_but_every(every, layers)} | given
        if preset is not None:
            return replace(PRESETS[preset], **given)
        missing = [name for name in SIZES if name not in given]
        if missing:
            raise BadArchitecture(
                f"the architecture lacks {', '.join(missing)}.\nSet them, or choose a preset."
            )
        return cls(**FAMILIES[model_type].usual | FAMILIES[model_type].fixed | given)

    @classmethod
    def from_hf(cls, config: dict) -> "Architecture":
        """Read a Hugging Face `config.json` (the key styles of Transformers 4 and 5)."""
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise _unsupported(f"model_type {model_type!r} is not supported.")
        family = FAMILIES[model_type]
        _refuse_unsupported_features(config, family)
        try:
            heads = config["num_attention_heads"]
            eos = config.get("eos_token_id")
            activation = config.get(family.activation_key, family.usual_activation)
            shared = {
                "model_type": model_type,
                "hidden_size": config["hidden_size"],
                "intermediate_size": config["intermediate_size"],
                "num_layers": config["num_hidden_layers"],
                "num_heads": heads,
                "num_kv_heads": config.get("num_key_value_heads") or heads,
                "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
                "vocab_size": config["vocab_size"],
                "max_positions": config["max_position_embeddings"],
                "norm_eps": config.get(family.eps_key, family.usual_eps),
                "activation": HF_ACTIVATIONS[activation],
                "tie_embeddings": config.get("tie_word_embeddings", family.usually_tied),
                "bos_token_id": config.get("bos_token_id"),
                "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
            }
            return cls(**shared | family.fixed | family.read_flags(config) | family.read(config))
        except KeyError as error:
            raise BadArchitecture(
                f"config.json lacks {error.args[0]!r}.\nTake a complete copy of the model's config."
            ) from None

    def to_hf(self) -> dict:
        """A `config.json` that Transformers (4 and 5) reads as the same model."""
        family = FAMILIES[self.model_type]
        if Architecture.from_hf(config := self._hf(family)) != self:
            raise BadArchitecture(
                f"a {self.model_type} config cannot express {self}.\n"
                f"Keep to what the family has: {family.fixed or 'all switches'}."
            )
        return config

    def _hf(self, family: "_Family") -> dict:
        eos = self.eos_token_id
        return {
            "architectures": [family.hf_class],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            family.activation_key: ACTIVATIONS[self.activation],
            family.eps_key: self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "initializer_range": 0.02,
            "use_cache": True,
            **{key: getattr(self, names[0]) for key, names in family.flags.items()},
            **family.write(self),
        }

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text; empty where the model names none."""
        eos = self.eos_token_id
        return () if eos is None else eos if isinstance(eos, tuple) else (eos,)

    @property
    def groups(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated, the first ones."""
        return int(self.head_dim * self.rope_fraction)

    def window(self, layer: int) -> int | None:
        """Tokens that a layer's attention sees, the present one included; None: all."""
        return self.sliding_window if layer in self.sliding_layers else None

    def rope_is_local(self, layer: int) -> bool:
        """Whether a layer rotates by the base of the sliding layers."""
        return self.rope_local_theta is not None and layer in self.sliding_layers

    def parameter_count(self) -> int:
        """Parameters, the tied head counted once."""
        h, i, d = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_heads * d, self.num_kv_heads * d
        attention = h * (q + 2 * kv) + q * h
        attention += self.qkv_bias * (q + 2 * kv) + self.o_bias * h
        inner = 2 if self.gated_mlp else 1
        mlp = (inner + 1) * h * i + self.mlp_bias * (inner * i + h)
        embeddings = self.vocab_size * h * (1 if self.tie_embeddings else 2)
        normed = self.num_layers * ((4 if self.post_norms else 2) * h + self.qk_norm * 2 * d) + h
        norms = normed * (2 if self.norm == "layer" else 1)
        return self.num_layers * (attention + mlp) + embeddings + norms

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that one token of one sequence holds in all layers.

        Sliding layers too: caches keep what has left their window.
        """
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype_bytes


SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "max_positions",
)


NORMS = {
    "rms": "RMSNorm",
    "rms_offset": "RMSNorm times 1 + weight",
    "layer": "LayerNorm with bias",
}
ACTIVATIONS = {  # and what Transformers calls them
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
HF_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def sliding_but_every(every: int, layers: int) -> tuple[int, ...]:
    """Layers that slide where each `every`-th one attends to all tokens."""
    return tuple(layer for layer in range(layers) if (layer + 1) % every)


@dataclass(frozen=True)
class _Family:
    """What a Hugging Face model type fixes, and how its config says the rest."""

    hf_class: str
    fixed: dict  # fields that its configs cannot change
    flags: dict[str, tuple[str, ...]]  # config key, true or false -> fields it sets
    read: Callable[[dict], dict]  # the config's other keys -> fields
    write: Callable[[Architecture], dict]  # and back
    usual: dict = field(default_factory=dict)  # other fields of an architecture made from sizes
    full_layer_every: int | None = None  # of an architecture made from sizes; the others slide
    activation_key: str = "hidden_act"
    usual_activation: str = "silu"
    eps_key: str = "rms_norm_eps"
    usual_eps: float = 1e-6
    usually_tied: bool = False
    refused: tuple[str, ...] = ()  # config keys that must not be set

    def read_flags(self, config: dict) -> dict:
        return {
            name: bool(config.get(key, self.usual.get(name, False)))
            for key, names in self.flags.items()
            for name in names
        }


def _read_llama(config: dict) -> dict:
    """Base and scaling, from `rope_parameters` (5.x) or `rope_theta` and `rope_scaling` (4.x)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "rope_theta": rope.get("rope_theta") or config.get("rope_theta", 10000.0),
        "rope_scaling": _read_scaling(rope),
    }


def _write_llama(arch: Architecture) -> dict:
    return _write_scaled(arch, {"rope_theta": arch.rope_theta})


def _read_gemma3(config: dict) -> dict:
    """Rotation by kind of layer, and which layers slide, from lists (5.x) or periods (4.x)."""
    rope = config.get("rope_parameters") or {}
    far = rope.get("full_attention") or config.get("rope_scaling") or {}
    near = rope.get("sliding_attention") or {}
    if _read_scaling(near) is not None:
        raise _unsupported("rotary scaling of sliding layers is not supported.")
    layers = config["num_hidden_layers"]
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    sliding = sliding_but_every(period, layers)
    if kinds := config.get("layer_types"):
        if len(kinds) != layers or {*kinds} - {"full_attention", "sliding_attention"}:
            raise _unsupported(f"layer_types {kinds} of {layers} layers are not supported.")
        sliding = tuple(at for at, kind in enumerate(kinds) if kind == "sliding_attention")
    scalar = config.get("query_pre_attn_scalar", 256)
    return {
        "rope_theta": far.get("rope_theta") or config.get("rope_theta", 1e6),
        "rope_scaling": _read_scaling(far),
        "rope_local_theta": near.get("rope_theta") or config.get("rope_local_base_freq", 1e4),
        "sliding_window": config["sliding_window"],
        "sliding_layers": sliding,
        "query_scalar": None if scalar == config["head_dim"] else scalar,
    }


def _write_gemma3(arch: Architecture) -> dict:
    written = _write_scaled(arch, {"rope_theta": arch.rope_theta})
    near = {"rope_type": "default", "rope_theta": arch.rope_local_theta}
    written["rope_parameters"] = {
        "full_attention": written["rope_parameters"],
        "sliding_attention": near,
    }
    kinds = {False: "full_attention", True: "sliding_attention"}
    return written | {
        "rope_local_base_freq": arch.rope_local_theta,
        "sliding_window": arch.sliding_window,
        "layer_types": [kinds[layer in arch.sliding_layers] for layer in range(arch.num_layers)],
        "query_pre_attn_scalar": arch.query_scalar or arch.head_dim,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _read_gpt_neox(config: dict) -> dict:
    """Every head has its own keys; its dimension follows from the hidden size."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads = config["num_attention_heads"]
    return {
        "num_kv_heads": heads,
        "head_dim": config["hidden_size"] // heads,
        "rope_theta": rope.get("rope_theta") or config.get("rotary_emb_base", 10000.0),
        "rope_scaling": _read_scaling(rope),
        "rope_fraction": rope.get("partial_rotary_factor") or config.get("rotary_pct", 0.25),
    }


def _write_gpt_neox(arch: Architecture) -> dict:
    fraction = {"partial_rotary_factor": arch.rope_fraction, "rope_theta": arch.rope_theta}
    return _write_scaled(arch, fraction) | {
        "rotary_pct": arch.rope_fraction,
        "rotary_emb_base": arch.rope_theta,
    }


def _read_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(rope["factor"])
    if kind != "llama3":
        raise _unsupported(f"rotary scaling {kind!r} is not supported.")
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _write_scaled(arch: Architecture, rope: dict) -> dict:
    """Rotary keys for Transformers 5 (`rope_parameters`) and 4 (the others)."""
    scaling = arch.rope_scaling
    if scaling is None:
        return {
            "rope_theta": arch.rope_theta,
            "rope_parameters": {"rope_type": "default"} | rope,
        }
    written = {"rope_type": "linear", "factor": scaling.factor}
    if scaling.is_llama3:
        written = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return {
        "rope_theta": arch.rope_theta,
        "rope_scaling": written | rope,
        "rope_parameters": written | rope,
    }


FAMILIES = {
    "qwen3": _Family(
        "Qwen3ForCausalLM",
        fixed={"qk_norm": True},
        flags={"attention_bias": ("qkv_bias", "o_bias")},
        read=_read_llama,
        write=_write_llama,
    ),
    "qwen2": _Family(
        "Qwen2ForCausalLM",
        fixed={"qkv_bias": True},
        flags={},
        read=_read_llama,
        write=_write_llama,
    ),
    "llama": _Family(
        "LlamaForCausalLM",
        fixed={},
        flags={"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)},
        read=_read_llama,
        write=_write_llama,
    ),
    "gemma3_text": _Family(
        "Gemma3ForCausalLM",
        fixed={
            "norm": "rms_offset",
            "post_norms": True,
            "qk_norm": True,
            "scaled_embedding": True,
        },
        flags={"attention_bias": ("qkv_bias", "o_bias")},
        read=_read_gemma3,
        write=_write_gemma3,
        usual={
            "activation": "gelu_tanh",
            "rope_theta": 1e6,
            "rope_local_theta": 1e4,
            "sliding_window": 512,
            "tie_embeddings": True,
        },
        full_layer_every=6,
        activation_key="hidden_activation",
        usual_activation="gelu_pytorch_tanh",
        usually_tied=True,
        refused=(
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "use_bidirectional_attention",
        ),
    ),
    "gpt_neox": _Family(
        "GPTNeoXForCausalLM",
        fixed={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
        flags={
            "attention_bias": ("qkv_bias", "o_bias"),
            "use_parallel_residual": ("parallel_residual",),
        },
        read=_read_gpt_neox,
        write=_write_gpt_neox,
        usual={
            "activation": "gelu",
            "norm_eps": 1e-5,
            "parallel_residual": True,
            "qkv_bias": True,
            "o_bias": True,
            "rope_fraction": 0.25,
        },
        usual_activation="gelu",
        eps_key="layer_norm_eps",
        usual_eps=1e-5,
    ),
}


def _unsupported(cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{cause}\nSupported model types: {', '.join(sorted(FAMILIES))} (Qwen3, Qwen2.5, "
        "Llama 3.2, Gemma 3 text, GPT-NeoX and Pythia), with default, linear or llama3 rotary "
        "scaling; see docs/architectures.md."
    )


def _refuse_unsupported_features(config: dict, family: _Family) -> None:
    """A config key that changes the computation must not be ignored."""
    model_type = config["model_type"]
    activation = config.get(family.activation_key, family.usual_activation)
    if activation not in HF_ACTIVATIONS:
        raise _unsupported(f"activation {activation!r} of this {model_type} is not supported.")
    for key in family.refused:
        if config.get(key):
            raise _unsupported(f"{key} of this {model_type} is not supported.")
    if family.full_layer_every is not None:
        return
    sliding = config.get("use_sliding_window", False) and config.get("sliding_window")
    kinds = set(config.get("layer_types") or ())
    if kinds - {"full_attention"} or (sliding and not kinds):
        raise _unsupported(f"sliding-window attention of this {model_type} is not supported.")


def _qwen3(**sizes) -> Architecture:
    shared = {
        "model_type": "qwen3",
        "num_kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_positions": 40960,
        "rope_theta": 1e6,
        "tie_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return Architecture.make(**shared | sizes)


def _gemma3(**sizes) -> Architecture:
    shared = {
        "model_type": "gemma3_text",
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_positions": 32768,
        "bos_token_id": 2,
    }
    return Architecture.make(**shared | sizes)


def _pythia(num_heads: int, **sizes) -> Architecture:
    shared = {
        "model_type": "gpt_neox",
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "vocab_size": 50304,
        "max_positions": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return Architecture.make(**shared | sizes)


# The published shapes, from the models' config.json.
PRESETS = {
    "qwen3-0.6b": _qwen3(hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16),
    "qwen3-1.7b": _qwen3(hidden_size=2048, intermediate_size=6144, num_layers=28, num_heads=16),
    "qwen3-4b": _qwen3(hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32),
    "qwen3-8b": _qwen3(
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        tie_embeddings=False,
    ),
    "qwen2.5-0.5b": Architecture.make(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151936,
        max_positions=32768,
        rope_theta=1e6,
        tie_embeddings=True,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
    "llama-3.2-1b": Architecture.make(
        model_type="llama",
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128256,
        max_positions=131072,
        norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        tie_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "gemma-3-270m": _gemma3(hidden_size=640, intermediate_size=2048, num_layers=18, eos_token_id=1),
    "gemma-3-1b": _gemma3(
        hidden_size=1152, intermediate_size=6912, num_layers=26, eos_token_id=(1, 106)
    ),
    "pythia-160m": _pythia(
        hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, head_dim=64
    ),
    "pythia-2.8b": _pythia(
        hidden_size=2560, intermediate_size=10240, num_layers=32, num_heads=32, head_dim=80
    ),
}
