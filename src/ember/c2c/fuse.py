"""Fusion as an operation on a cache: the receiver's own KV of a section, then what is added to it.

Contract. A prompt is run section by section through a `SectionCache`. After a section whose tokens
are fused its keys and values in the cache are replaced by `fuse`'s, and later sections attend to
those. The decoder knows nothing of it. Gradients flow through, which fusers are trained by.

Shapes: B batch, T tokens of a section, S tokens cached, H KV heads, D head dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.c2c.fuser import Fuser
from ember.c2c.source import LayerKV, SourceKV
from ember.cache.base import BadCacheUse, KVCache, KVRead
from ember.model.architecture import Architecture
from ember.model.decoder import KeyRotation, Rotary, rotate


class SectionCache(KVCache):
    """Keys and values of all layers, (B, S, H, D), that may be replaced and learned through.

    Keys lie normed, `rotated` or not. Sections of a batch's rows may differ in length: `expect`
    says which tokens of the next call are real; the padding after them is never attended to, and
    positions count real tokens alone.
    """

    def __init__(self, arch: Architecture, rotated: bool, device: str | torch.device = "cpu"):
        self.arch, self.rotated, self.device = arch, rotated, device
        self.kv: list[LayerKV | None] = [None] * arch.num_layers
        self._real: Tensor | None = None  # (B, S and the next call), None while there is no padding
        self._tables: tuple = (None, {})

    def expect(self, real: Tensor | None) -> None:
        """Which tokens (B, T) of the next call are real; None: all, as of all before."""
        if real is None and self._real is None:
            return
        if self.arch.sliding_layers:
            raise BadCacheUse(
                "layers that slide over a window take no padded batches.\nRun one item at a time."
            )
        before = self._real
        if before is None:
            before = real.new_ones(len(real), self.length(0))
        self._real = torch.cat([before, real], 1)

    def length(self, layer: int) -> int:
        """Tokens stored in a layer, padding too."""
        return 0 if self.kv[layer] is None else self.kv[layer][0].shape[1]

    def positions(self, count: int, layer: int) -> Tensor:
        """Those after the tokens before, (count,), or (B, count) where some of them are padding."""
        start = self.length(layer)
        if self._real is None:
            return torch.arange(start, start + count, device=self.device)
        return self._all_positions()[:, -count:]

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """Stores normed keys, rotated if they are to lie so; returns all as attention reads it."""
        keys = rotation(k).transpose(1, 2) if self.rotated else rotation.normed(k)
        if self.kv[layer] is not None:
            there = self.kv[layer]
            keys, v = torch.cat([there[0], keys], 1), torch.cat([there[1], v], 1)
        self.kv[layer] = (keys, v)
        if not self.rotated:
            keys = rotate(keys, *self._all_tables(rotation.rotary, keys.shape[1]))
        return KVRead(keys.transpose(1, 2), v.transpose(1, 2), self._bias())

    def section(self, start: int, stop: int) -> list[LayerKV]:
        """Keys and values of tokens start … stop in every layer, (B, stop - start, H, D)."""
        return [(k[:, start:stop], v[:, start:stop]) for k, v in self.kv]

    def replace(self, start: int, section: Sequence[LayerKV]) -> None:
        """Puts other keys and values in place of those from `start` to the end."""
        self.kv = [
            tuple(
                torch.cat([old[:, :start], new], 1) for old, new in zip(there, given, strict=True)
            )
            for there, given in zip(self.kv, section, strict=True)
        ]

    def take(self, rows: Tensor) -> None:
        """Keeps these rows (n,) of the batch, each as often as it stands there."""
        self.kv = [(k[rows], v[rows]) for k, v in self.kv]
        if self._real is not None:
            self._real = self._real[rows]

    @property
    def ragged(self) -> bool:
        """Whether any token is padding."""
        return self._real is not None

    def _all_positions(self) -> Tensor:
        return (self._real.cumsum(1) - 1).clamp(min=0)

    def _all_tables(self, rotary: Rotary, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions, once a call."""
        call, found = self._tables
        if call is not rotary:
            found, self._tables = {}, (rotary, found := {})
        if rotary.local not in found:
            ragged = self._real is not None
            positions = self._all_positions() if ragged else torch.arange(count, device=self.device)
            found[rotary.local] = rotary.at(positions)
        return found[rotary.local]

    def _bias(self) -> Tensor | None:
        if self._real is None:
            return None
        bias = torch.zeros(self._real.shape, device=self._real.device)
        return bias.masked_fill_(~self._real, -torch.inf)[:, None, None]


def fuse(
    fuser: Fuser,
    own: Sequence[LayerKV],
    source: SourceKV,
    mask: Tensor,
    *,
    gates: Sequence[Sequence[Tensor]] | None = None,
    sparse: bool = False,
    lost: Tensor | None = None,
) -> list[LayerKV]:
    """Own keys and values (B, T, Ht, Dt) of every layer plus what the fuser adds to them.

    It adds where `mask` (B, T) and `source.tokens` hold, and nothing elsewhere. Without `gates` (of
    a training step, see `Fuser.soft_gates`) they are hard, and closed branches are not computed.
    `sparse`: only the tokens that change are projected; the result is the same. `lost`
    (B, T): tokens whose own keys and values are put to 0 instead of kept (`scatter_fill`: zeros).
    """
    chosen = mask & source.tokens
    if gates is None:
        gates = fuser.open_gates()
    places = chosen.nonzero(as_tuple=True) if sparse else None
    fused = []
    for layer, number, kv, opened in zip(fuser, fuser.sources, own, gates, strict=True):
        made = []
        for place, branch in enumerate((layer.key, layer.value)):
            mine, gate = kv[place], opened[place]
            if gate is False or number not in source.layers:
                made.append(mine)
                continue
            theirs = source.of(number)[place]
            factor = 1.0 if gate is True else gate
            if places is not None:
                added = branch(theirs[places], mine[places]) * factor
                made.append(mine.index_put(places, mine[places] + added))
            else:
                added = branch(theirs, mine) * factor
                made.append(torch.where(chosen[..., None, None], mine + added, mine))
        if lost is not None:
            made = [x.masked_fill(lost[..., None, None], 0) for x in made]
        fused.append(tuple(made))
    return fused
