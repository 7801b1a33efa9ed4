"""What a decoder looks like: sizes and switches, without weights.

Contract. An `Architecture` is plain frozen data. It comes from a Hugging Face `config.json`
(`from_hf`), from a known shape (`PRESETS`) or from fields (`Architecture.make`), goes back with
`to_hf`, and knows what follows from sizes alone: parameters and bytes of KV per token. Each switch
stands for a feature the decoder has; the code never asks which family a model belongs to.
"""

import difflib
from dataclasses import asdict, dataclass, fields, replace

from ember.records.errors import EmberError


class BadArchitecture(EmberError):
    """Sizes that contradict each other, or fields nobody knows."""


class UnsupportedModel(EmberError):
    """A model that this decoder cannot run; the message names those it can."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's long-context scaling: low rotary frequencies are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Architecture:
    """Sizes and features of one decoder-only transformer.

    Pre-norm blocks with RMSNorm, rotary grouped-query attention and a gated SiLU MLP.
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
    norm_eps: float = 1e-6
    qk_norm: bool = False  # RMSNorm over each query and key head, before rotation
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
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
        if self.head_dim % 2:
            raise BadArchitecture(
                f"head_dim is {self.head_dim}.\nRotary embedding pairs dimensions: make it even."
            )
        if self.model_type not in FAMILIES:
            raise _unsupported(f"model_type {self.model_type!r} is not supported.")

    @classmethod
    def make(cls, preset: str | None = None, **given) -> "Architecture":
        """An architecture from a preset, from fields over it, or from fields alone.

        Without a preset `model_type` and all sizes are needed; what the family fixes (qk-norm,
        biases) has the family's value unless given.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
                raise BadArchitecture(f"unknown architecture field {name!r}.\n{hint}")
        if preset is not None:
            if preset not in PRESETS:
                raise BadArchitecture(
                    f"unknown preset {preset!r}.\nKnown presets: {', '.join(sorted(PRESETS))}."
                )
            return replace(PRESETS[preset], **given)
        model_type = given.get("model_type")
        if model_type not in FAMILIES:
            raise _unsupported(f"model_type {model_type!r} is not supported.")
        missing = [name for name in SIZES if name not in given]
        if missing:
            raise BadArchitecture(
                f"the architecture lacks {', '.join(missing)}.\nSet them, or choose a preset."
            )
        return cls(**FAMILIES[model_type].fixed | given)

    @classmethod
    def from_hf(cls, config: dict) -> "Architecture":
        """Read a Hugging Face `config.json` (the key styles of Transformers 4 and 5)."""
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise _unsupported(f"model_type {model_type!r} is not supported.")
        family = FAMILIES[model_type]
        _refuse_unsupported_features(config, model_type)
        try:
            heads = config["num_attention_heads"]
            eos = config.get("eos_token_id")
            theta, scaling = _read_rope(config)
            return cls(
                model_type=model_type,
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocab_size=config["vocab_size"],
                max_positions=config["max_position_embeddings"],
                norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=theta,
                rope_scaling=scaling,
                tie_embeddings=config.get("tie_word_embeddings", False),
                bos_token_id=config.get("bos_token_id"),
                eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
                **family.fixed | family.read(config),
            )
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
        rope: dict = {"rope_type": "default"}
        if self.rope_scaling is not None:
            scaling = asdict(self.rope_scaling)
            original = scaling.pop("original_max_positions")
            rope = {
                "rope_type": "llama3",
                **scaling,
                "original_max_position_embeddings": original,
            }
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
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "initializer_range": 0.02,
            "use_cache": True,
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

    def parameter_count(self) -> int:
        """Parameters, the tied head counted once."""
        h, i, d = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_heads * d, self.num_kv_heads * d
        attention = h * (q + 2 * kv) + q * h
        attention += self.qkv_bias * (q + 2 * kv) + self.o_bias * h + self.qk_norm * 2 * d
        mlp = 3 * h * i + self.mlp_bias * (2 * i + h)
        embeddings = self.vocab_size * h * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp + 2 * h) + embeddings + h

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that one token of one sequence holds in all layers."""
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


@dataclass(frozen=True)
class _Family:
    """What a Hugging Face model type fixes, and which of its config keys set which switches."""

    hf_class: str
    fixed: dict
    keys: dict[str, tuple[str, ...]]  # config key -> switches it sets

    def read(self, config: dict) -> dict:
        return {
            name: bool(config.get(key, False)) for key, names in self.keys.items() for name in names
        }

    def write(self, arch: Architecture) -> dict:
        return {key: getattr(arch, names[0]) for key, names in self.keys.items()}


FAMILIES = {
    "qwen3": _Family(
        "Qwen3ForCausalLM", {"qk_norm": True}, {"attention_bias": ("qkv_bias", "o_bias")}
    ),
    "qwen2": _Family("Qwen2ForCausalLM", {"qkv_bias": True}, {}),
    "llama": _Family(
        "LlamaForCausalLM",
        {},
        {"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)},
    ),
}


def _unsupported(cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{cause}\nSupported model types: {', '.join(sorted(FAMILIES))} "
        "(Qwen3, Qwen2.5, Llama 3.2), with full attention and default or llama3 rotary scaling."
    )


def _refuse_unsupported_features(config: dict, model_type: str) -> None:
    """A config key that changes the computation must not be ignored."""
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise _unsupported(f"activation {activation!r} of this {model_type} is not supported.")
    sliding = config.get("use_sliding_window", False) and config.get("sliding_window")
    kinds = set(config.get("layer_types") or ())
    if kinds - {"full_attention"} or (sliding and not kinds):
        raise _unsupported(f"sliding-window attention of this {model_type} is not supported.")


def _read_rope(config: dict) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (5.x) or `rope_theta` and `rope_scaling` (4.x)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _unsupported(f"rotary scaling {kind!r} is not supported.")
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


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
}
