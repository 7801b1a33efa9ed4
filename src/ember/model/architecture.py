"""What a decoder looks like: sizes and switches, without weights.

Contract. An `Architecture` is plain frozen data. It comes from a Hugging Face `config.json`
(`from_hf`), from a known shape (`ember.model.presets`) or from fields (`Architecture.make`), goes
back with `to_hf`, and knows what follows from sizes alone: parameters and bytes of KV per token.
Each switch stands for a feature the decoder has; the code never asks which family a model belongs
to, and what a family's files say is `ember.model.families`'s.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ember.model.families import ACTIVATIONS, family_of, sliding_but_every
from ember.model.presets import preset_fields
from ember.model.rope import BadArchitecture, RopeScaling
from ember.records.errors import nearest
from ember.records.foreign import Fields

# Sizes, and the most that a model may have of each: what is above stands in no real config.
SIZES = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_layers": 1 << 13,
    "num_heads": 1 << 16,
    "num_kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 28,
    "max_positions": 1 << 40,
}
NORMS = {
    "rms": "RMSNorm",
    "rms_offset": "RMSNorm times 1 + weight",
    "layer": "LayerNorm with bias",
}


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
        for name, most in SIZES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
                raise BadArchitecture(
                    f"architecture.{name} is {value!r}.\n"
                    f"Set it to a whole number from 1 to {most:,}."
                )
        for name in ("norm_eps", "rope_theta", "rope_local_theta", "query_scalar"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise BadArchitecture(
                    f"architecture.{name} is {value!r}.\nSet it to a number above 0."
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
        family_of(self.model_type)

    @classmethod
    def make(cls, preset: str | None = None, **given) -> "Architecture":
        """An architecture from a preset, from fields over it, or from fields alone.

        Without a preset `model_type` and all sizes are needed; what the family fixes (qk-norm,
        biases) or usually has (rotary bases, which layers slide) has that value unless given.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                hint = nearest(name, known).strip()
                raise BadArchitecture(f"unknown architecture field {name!r}.\n{hint}")
        given = {  # from YAML they are lists
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        if preset is not None:
            given = preset_fields(preset) | given
        family = family_of(given.get("model_type"))
        if missing := [name for name in SIZES if name not in given]:
            raise BadArchitecture(
                f"the architecture lacks {', '.join(missing)}.\nSet them, or choose a preset."
            )
        made = {**family.usual, **family.fixed, **given}
        layers = made["num_layers"]
        if family.full_layer_every and isinstance(layers, int) and layers <= SIZES["num_layers"]:
            sliding = sliding_but_every(family.full_layer_every, layers)
            made.setdefault("sliding_layers", sliding)
        return cls(**made)

    @classmethod
    def from_hf(cls, config: Mapping) -> "Architecture":
        """Read a Hugging Face `config.json` (the key styles of Transformers 4 and 5)."""
        if not isinstance(config, Fields):
            remedy = "Take a complete copy of the model's config."
            config = Fields(config, "config.json", BadArchitecture, remedy)
        return cls(**family_of(config.get("model_type", str, None)).read(config))

    def to_hf(self) -> dict:
        """A `config.json` that Transformers (4 and 5) reads as the same model."""
        family = family_of(self.model_type)
        if Architecture.from_hf(config := family.write(self)) != self:
            raise BadArchitecture(
                f"a {self.model_type} config cannot express {self}.\n"
                f"Keep to what the family has: {family.fixed or 'all switches'}."
            )
        return config

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

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        return (self.query_scalar or self.head_dim) ** -0.5

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
