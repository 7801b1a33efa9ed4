"""What Hugging Face calls a decoder's tensors, and how it lays them out.

Contract. `from_hf` gives the decoder's tensors that one tensor of a checkpoint holds, `to_hf` all
tensors of a checkpoint; the two are inverse. Nothing is copied but what has to be laid out anew:
GPT-NeoX keeps queries, keys and values of a layer in one block, head after head.
"""

import re
from collections.abc import Mapping

from ember.model.architecture import Architecture
from ember.model.families import family_of

# Constants that checkpoints of other versions keep; the decoder computes them.
CONSTANTS = re.compile(r"(rotary_emb\.inv_freq|attention\.(bias|masked_bias))$")
PACKED = re.compile(r"(layers\.\d+\.self_attn\.)query_key_value\.(weight|bias)$")
QKV = ("q_proj", "k_proj", "v_proj")


HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"  # the decoder's names


def renamed(arch: Architecture, name: str) -> str:
    """The decoder's name of a checkpoint's tensor, GPT-NeoX's packed ones apart."""
    family = family_of(arch.model_type)
    pieces = name.removeprefix(family.base).split(".")
    return ".".join(family.renamed.get(piece, piece) for piece in pieces)


def is_constant(arch: Architecture, name: str) -> bool:
    """Whether a checkpoint's tensor is no parameter: a constant, or a copy of the tied head."""
    tied = arch.tie_embeddings and renamed(arch, name) == HEAD
    return tied or CONSTANTS.search(name) is not None


def from_hf(arch: Architecture, name: str, tensor) -> dict:
    """The decoder's parameters, by its names, that a checkpoint's tensor holds.

    A name that no decoder has stays as it is. Constants give nothing.
    """
    if is_constant(arch, name):
        return {}
    ours = renamed(arch, name)
    packed = PACKED.match(ours) if family_of(arch.model_type).packed_qkv else None
    if packed is None:
        return {ours: tensor}
    where, kind = packed.groups()
    rows = arch.num_heads * 3 * arch.head_dim
    if not tensor.ndim or tensor.shape[0] != rows:  # refused for its shape by whoever loads it
        return {f"{where}{projection}.{kind}": tensor for projection in QKV}
    heads = tensor.unflatten(0, (arch.num_heads, 3, arch.head_dim))
    return {
        f"{where}{projection}.{kind}": heads[:, at].flatten(0, 1)
        for at, projection in enumerate(QKV)
    }


def to_hf(arch: Architecture, parameters: Mapping) -> dict:
    """A checkpoint's tensors, by its names, of all the decoder's parameters."""
    family = family_of(arch.model_type)
    theirs = {ours: piece for piece, ours in family.renamed.items()}
    parameters = _pack(arch, parameters) if family.packed_qkv else parameters
    state = {}
    for name, tensor in parameters.items():
        full = ".".join(theirs.get(piece, piece) for piece in name.split("."))
        state[full if name == HEAD else family.base + full] = tensor
    return state


def _pack(arch: Architecture, parameters: Mapping) -> dict:
    """Queries, keys and values of a layer as one tensor: (heads, 3, D, …) in its first rows."""
    import torch

    packed = {}
    for name, tensor in parameters.items():
        where, _, kind = name.partition(".q_proj.")
        if kind:
            parts = [parameters[f"{where}.{projection}.{kind}"] for projection in QKV]
            heads = [part.unflatten(0, (arch.num_heads, arch.head_dim)) for part in parts]
            packed[f"{where}.query_key_value.{kind}"] = torch.stack(heads, 1).flatten(0, 2)
        elif ".k_proj." not in name and ".v_proj." not in name:
            packed[name] = tensor
    return packed
