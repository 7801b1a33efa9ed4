"""Tiny models of every architecture, with weights of which each one matters."""

import json
from pathlib import Path

import torch

from ember.model.architecture import Architecture
from ember.model.decoder import Decoder
from ember.model.rope import RopeScaling

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_positions": 128,
}
# What makes a model this small use all that its family has.
CHANGES = {
    "llama": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
    # Untied, because a large embedding that is the head as well repeats the last token.
    "gemma3_text": {"sliding_window": 5, "sliding_layers": (0, 2), "tie_embeddings": False},
    "gpt_neox": {"num_kv_heads": 4, "rope_fraction": 0.5},
}
ARCHITECTURES = ("gemma3_text", "gpt_neox", "llama", "qwen2", "qwen3")


def tiny(model_type: str = "qwen3", **fields) -> Architecture:
    """A small architecture; `fields` take the place of the usual ones."""
    return Architecture.make(model_type=model_type, **SIZES | CHANGES.get(model_type, {}) | fields)


def wild(
    model_type: str = "qwen3",
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    scale: float = 0.3,
    **fields,
) -> Decoder:
    """A tiny decoder of an architecture with the weights of `decoder_of`."""
    return decoder_of(tiny(model_type, **fields), seed, dtype, scale)


def decoder_of(
    arch: Architecture, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.3
) -> Decoder:
    """A decoder of weights so large that attention is far from uniform, norms and biases too."""
    decoder = Decoder(arch).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") and arch.norm != "rms_offset" else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return decoder.to(dtype)


def draw(rows: int, tokens: int, vocabulary: int = 61, seed: int = 2) -> torch.Tensor:
    """Token ids (rows, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, tokens), generator=generator)


def declared(folder: Path, model_type: str = "qwen3", *, seed: int = 1, **fields) -> Path:
    """A directory that declares a tiny model with random weights, without weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny(model_type, **fields).to_hf()))
    (folder / "ember.json").write_text(json.dumps({"weights": "random", "seed": seed}))
    return folder
