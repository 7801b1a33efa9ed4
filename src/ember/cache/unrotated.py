"""A KV cache whose tokens can be dropped and can move: keys are kept un-rotated, rotated when read.

Contract. Keys are stored normed but not rotated, with the position of each token beside them; a
read rotates them for the positions that they have by then. So tokens may be dropped (`keep`) and
positions changed (`move`) at no cost but that of reading. Layers may keep different tokens, all
rows of a layer the same. Sliding layers see what lies within the window by position, not by place.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ember.cache.base import BadCacheUse, CacheFull, KVCache, KVRead, refuse_gradients
from ember.model.architecture import Architecture
from ember.model.decoder import KeyRotation, Rotary, rotate


class UnrotatedCache(KVCache):
    """Keys and values of all layers, of at most `capacity` tokens each."""

    def __init__(
        self,
        arch: Architecture,
        batch: int,
        capacity: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch ({batch}) and capacity ({capacity}) must be 1 or more")
        self.arch = arch
        shape = (arch.num_layers, 2, batch, arch.num_kv_heads, capacity, arch.head_dim)
        self._kv = torch.empty(shape, device=device, dtype=dtype)
        self.reset()

    @property
    def capacity(self) -> int:
        return self._kv.shape[4]

    @property
    def bytes(self) -> int:
        """Memory reserved, whatever the lengths."""
        return self._kv.nbytes

    def length(self, layer: int) -> int:
        """Tokens that a layer has now."""
        return len(self._positions[layer])

    def key_positions(self, layer: int) -> Tensor:
        """Where the tokens of a layer stand, (length,), ascending."""
        return self._positions[layer]

    def positions(self, count: int, layer: int) -> Tensor:
        """Those after the last token that the layer was given, dropped or not, (count,)."""
        told = self._ends[layer] + torch.arange(count, device=self._kv.device)
        self._told = (told, self.length(layer))
        return told

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """Stores normed keys, values and positions; returns all keys, rotated, and values."""
        start, rotary = self.length(layer), rotation.rotary
        stop = start + k.shape[1]
        self._check_room(stop, k, rotary)
        keys, values = self._kv[layer]
        keys[:, :, start:stop].copy_(rotation.normed(k).transpose(1, 2))
        values[:, :, start:stop].copy_(v.transpose(1, 2))
        if self._told[0] is not rotary.positions or self._told[1] != start:
            self._gaps = True  # these positions are the caller's, or another layer's
        self._positions[layer], tables = self._extended(self._positions[layer], rotary)
        self._ends[layer] = rotary.positions[-1] + 1
        rotated = rotate(keys[:, :, :stop].transpose(1, 2), *tables).transpose(1, 2)
        return KVRead(rotated, values[:, :, :stop], self._window_bias(layer, rotary))

    def keep(self, indices: Sequence[int] | Tensor, layers: Iterable[int] | None = None) -> None:
        """Drops all tokens but those at `indices` (n,), ascending, of `layers` (all by default).

        Positions stay as they are; `move` closes the gaps where that is wanted.
        """
        layers = self._chosen(layers)
        indices = torch.as_tensor(indices, dtype=torch.long, device=self._kv.device)
        shortest = min(self.length(layer) for layer in layers)
        if not _ascends(indices) or (
            len(indices) and not 0 <= indices[0] <= indices[-1] < shortest
        ):
            raise BadCacheUse(
                f"cannot keep tokens {indices.tolist()} of {shortest}.\n"
                "Give places within them, each once, in ascending order."
            )
        for layer in layers:
            kept = self._kv[layer][..., indices, :]
            self._kv[layer][..., : len(indices), :] = kept
        self._replace(layers, lambda positions: positions[indices])

    def move(self, positions: Sequence[int] | Tensor, layers: Iterable[int] | None = None) -> None:
        """Gives the tokens of `layers` (all by default) new positions (length,), ascending.

        What comes next stands after the last of them in the first layer that is run, so it should
        be the same in all.
        """
        layers = self._chosen(layers)
        positions = torch.as_tensor(positions, dtype=torch.long, device=self._kv.device)
        lengths = {self.length(layer) for layer in layers}
        if lengths != {len(positions)} or not _ascends(positions) or (positions < 0).any():
            raise BadCacheUse(
                f"cannot move {sorted(lengths)} tokens to {positions.tolist()}.\n"
                "Give each token a position of 0 or more, in ascending order."
            )
        self._replace(layers, lambda _: positions)
        for layer in layers if len(positions) else ():
            self._ends[layer] = positions[-1] + 1

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        none = torch.zeros(0, dtype=torch.long, device=self._kv.device)
        self._positions = [none] * self.arch.num_layers
        self._ends = [none.sum()] * self.arch.num_layers  # where what comes next stands
        self._told = (none, 0)  # the last answer of `positions`, and the tokens it follows
        self._gaps = False  # whether a token may stand elsewhere than its place says
        self._memo: dict[bool, tuple] = {}

    def _check_room(self, stop: int, k: Tensor, rotary: Rotary) -> None:
        refuse_gradients(k)
        if rotary.positions.ndim != 1:
            raise BadCacheUse(
                "this cache has one position a token for all rows.\nRun rows that differ apart."
            )
        if stop > self.capacity:
            raise CacheFull(
                f"a layer would hold {stop} tokens, but the cache's capacity is {self.capacity}.\n"
                f"Make the cache with capacity={stop} or more, or drop tokens before."
            )

    def _extended(self, there: Tensor, rotary: Rotary) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A layer's positions with the call's, and the tables that rotate for all of them.

        Layers with the same positions share them, and so compute their tables once a call.
        """
        before, call, *found = self._memo.get(rotary.local, (None, None))
        if before is not there or call is not rotary:
            positions = torch.cat([there, rotary.positions])
            found = [positions, rotary.at(positions)]
            self._memo[rotary.local] = (there, rotary, *found)
        return tuple(found)

    def _window_bias(self, layer: int, rotary: Rotary) -> Tensor | None:
        """Hides what is too old by position; by place, attention itself does (`attend_near`)."""
        window = self.arch.window(layer)
        if window is None or not self._gaps:
            return None
        age = rotary.positions[:, None] - self._positions[layer]
        return torch.zeros(age.shape, device=age.device).masked_fill_(age >= window, -torch.inf)

    def _chosen(self, layers: Iterable[int] | None) -> list[int]:
        return list(range(self.arch.num_layers) if layers is None else layers)

    def _replace(self, layers: list[int], change) -> None:
        """New positions of layers; those that shared them still do."""
        self._gaps = True
        new = {id(old): change(old) for old in (self._positions[layer] for layer in layers)}
        for layer in layers:
            self._positions[layer] = new[id(self._positions[layer])]


def _ascends(numbers: Tensor) -> bool:
    return numbers.ndim == 1 and bool((numbers.diff() > 0).all())
