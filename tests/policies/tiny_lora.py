"""Tiny random decoders and adapters, for the tests of the policies."""

import torch

from ember.lora.adapter import Adapter, LowRank
from ember.model.decoder import Decoder
from ember.policies.plan import Update
from tests.tiny import wild

LAYERS, RANK, TOKENS = 4, 4, 24
# Layers that slide, over fewer tokens than the prompt has, beside layers that do not.
GEMMA = {"sliding_window": 7, "sliding_layers": (0, 1, 3), "tie_embeddings": False}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def make_decoder(seed: int, model_type: str = "qwen3", dtype=torch.float64) -> Decoder:
    """A random decoder whose logits are of order 1."""
    fields = GEMMA if model_type == "gemma3_text" else {}
    sizes = {"num_layers": LAYERS, "vocab_size": 50, "max_positions": 256}
    return wild(model_type, dtype, seed=seed, scale=0.18, **sizes | fields)


class Lora:
    """A random adapter of chosen projections; `step` moves B and merges the change."""

    def __init__(self, decoder: Decoder, where, seed: int, scale: float = 0.5):
        self.decoder, self.scale = decoder, scale
        self.generator = torch.Generator().manual_seed(seed)
        self.a, self.b = {}, {}
        for layer, name in where:
            weight = getattr(decoder.layers[layer].self_attn, name).weight
            shape = (RANK, weight.shape[1])
            noise = torch.randn(shape, generator=self.generator, dtype=weight.dtype)
            self.a[layer, name] = noise * weight.shape[1] ** -0.5
            self.b[layer, name] = weight.new_zeros(weight.shape[0], RANK)

    def step(self, size: float = 0.3) -> None:
        with torch.no_grad():
            for (layer, name), b in self.b.items():
                delta = torch.randn(b.shape, generator=self.generator, dtype=b.dtype) * size
                weight = getattr(self.decoder.layers[layer].self_attn, name).weight
                weight += self.scale * delta @ self.a[layer, name]
                b += delta

    @property
    def adapter(self) -> dict:
        return {
            key: LowRank(self.a[key], self.b[key], self.scale)
            for key in self.a
            if key[1] in ("k_proj", "v_proj")
        }

    def update(self, round: int) -> Update:
        layers = frozenset(layer for layer, _ in self.a)
        kv = frozenset(layer for layer, _ in self.adapter)
        return Update(round, layers, self.version, kv)

    @property
    def version(self) -> str:
        """Content hash of all factors."""
        parts = {key: LowRank(self.a[key], self.b[key], self.scale) for key in self.a}
        return Adapter(parts).hash if parts else "base"


def everywhere(first: int = 0, names=PROJECTIONS):
    return [(layer, name) for layer in range(first, LAYERS) for name in names]


def prompt(seed: int = 0, tokens: int = TOKENS) -> list[int]:
    return torch.randint(50, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
