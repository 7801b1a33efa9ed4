"""A small decoder of every architecture, with weights so wild that every one of them matters."""

import torch

from ember.model.architecture import Architecture, RopeScaling
from ember.model.checkpoint import random_decoder

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
CHANGES = {
    "llama": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
    # Untied, because a large embedding that is the head as well repeats the last token.
    "gemma3_text": {"sliding_window": 5, "sliding_layers": (0, 2), "tie_embeddings": False},
    "gpt_neox": {"num_kv_heads": 4, "rope_fraction": 0.5},
}
ARCHITECTURES = ("gemma3_text", "gpt_neox", "llama", "qwen2", "qwen3")
PACKED = ("llama", "qwen2", "qwen3")  # those that the fast backends serve


def wild(model_type: str, dtype: torch.dtype = torch.float32, **fields):
    """A decoder of an architecture; `fields` of `Architecture` take the place of the usual ones."""
    sizes = SIZES | CHANGES.get(model_type, {}) | fields
    decoder = random_decoder(Architecture.make(model_type=model_type, **sizes), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return decoder.to(dtype)


def draw(rows: int, tokens: int, vocabulary: int = 61, seed: int = 2) -> torch.Tensor:
    """Token ids (rows, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, tokens), generator=generator)
