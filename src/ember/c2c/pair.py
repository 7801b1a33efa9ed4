"""A pair of frozen models and the fuser between them: reading, sharing, answering.

Shapes: B batch, T tokens, H hidden size, Hs and Ds the sharer's KV heads and their dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ember.c2c.fuse import SectionCache
from ember.c2c.fuser import Fuser, load_fuser
from ember.c2c.source import SourceKV
from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.decoder import Decoder

SMEAR = "smear.safetensors"


class Smear(nn.Module):
    """A short causal convolution of embeddings, by channel: x_t + a · x_{t-1} + b · x_{t-2}.

    With it small models learn to look up within minutes (a deviation that results name). It stands
    outside the decoder, which starts from hidden states.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, hidden), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H); the first token has none before it."""
        one = nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
        two = nn.functional.pad(one[:, :-1], (0, 0, 1, 0))
        return x + self.weight[0] * one + self.weight[1] * two


class Reader(nn.Module):
    """A decoder, and the smear of its embeddings where it has one."""

    def __init__(self, decoder: Decoder, smear: Smear | None = None):
        super().__init__()
        self.decoder, self.smear = decoder, smear

    @property
    def arch(self):
        return self.decoder.arch

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) from a text's beginning to hidden states (B, T, H)."""
        x = self.decoder.embed(tokens)
        return x if self.smear is None else self.smear(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """The last layer's output (B, T, H) of whole texts, without a cache."""
        return self.decoder(hidden=self.embed(tokens))


@dataclass
class Pair:
    """Sharer, receiver and fuser. Without one of the models (sequential mode) or without a fuser
    it does what the others allow."""

    sharer: Reader | None
    receiver: Reader | None
    fuser: Fuser | None

    @property
    def device(self) -> torch.device:
        """That of the models which are there."""
        return (self.receiver or self.sharer).device


def read(reader: Reader, tokens: Tensor, rotated: bool, real: Tensor | None = None) -> SectionCache:
    """The cache of texts (B, T), padding where not `real`. Nobody asks what comes after them, so
    that the last layer only makes its keys and values."""
    cache = SectionCache(reader.arch, rotated, reader.device)
    cache.expect(real)
    reader.decoder(hidden=reader.embed(tokens), cache=cache, last=1)
    return cache


def share(
    sharer: Reader,
    tokens: Tensor,
    index: Tensor,
    layers: Sequence[int],
    *,
    rotated: bool,
    real: Tensor | None = None,
) -> SourceKV:
    """The sharer reads texts (B, Ts) and gives KV of `layers`, in the receiver's frame.

    `index` (B, T): of each of the receiver's tokens the sharer's token whose KV it takes, or -1
    for none.
    """
    cache = read(sharer, tokens, rotated, real)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    picked = index.clamp(min=0)
    pairs = [tuple(x[rows, picked] for x in cache.kv[layer]) for layer in layers]
    keys, values = zip(*pairs, strict=True) if pairs else ((), ())
    return SourceKV(tuple(keys), tuple(values), tuple(layers), index >= 0, rotated)


def load_reader(folder: str | Path, device: str | torch.device, dtype: torch.dtype) -> Reader:
    """A frozen reader of a model directory, with the smear that stands in it, if one does."""
    decoder = load_decoder(folder, device, dtype)
    smear, file = None, Path(folder) / SMEAR
    if file.is_file():
        smear = Smear(decoder.arch.hidden_size)
        smear.load_state_dict(load_file(file))
        smear.to(device, dtype)
    return Reader(decoder, smear).eval().requires_grad_(False)


def save_reader(reader: Reader, folder: str | Path, about: dict | None = None) -> None:
    """Writes a model directory; without a smear Transformers loads it as the same model."""
    with TemporaryDirectory() as place:
        extra = []
        if reader.smear is not None:
            extra = [Path(place) / SMEAR]
            save_file({"weight": reader.smear.weight.detach().cpu().float()}, extra[0])
        save_decoder(reader.decoder, folder, about=about, extra_files=extra)


def load_pair(
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path | None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pair:
    """A pair from its folders; `fuser` None: receiver and sharer alone."""
    readers = [load_reader(folder, device, dtype) for folder in (sharer, receiver)]
    if fuser is not None:
        fuser = load_fuser(fuser, *(one.arch for one in readers), device, dtype)
    return Pair(*readers, fuser)
