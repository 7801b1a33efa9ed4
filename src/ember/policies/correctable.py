"""A KV cache that can be corrected in place when an adapter's B moves (P1-8.1).

Contract. While the weights' low-rank part is given (`adapter`), an update also keeps, token by
token, the activations x·Aᵀ of adapted key and value projections (r numbers each) and, where the
architecture norms keys, the raw ones. `correct` then moves K and V by s·(xAᵀ)ΔBᵀ: exact in the
first layer that changed, approximate above it, where x itself has moved.

A must stand still: if it trains too, the kept activations belong to the old A; the correction then
needs x itself (H numbers a token instead of r) and has rank 2r, so it is refused.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ember.cache.base import KVRead
from ember.cache.contiguous import ContiguousCache
from ember.lora.adapter import LowRank
from ember.model.architecture import Architecture
from ember.model.decoder import KeyRotation, Rotary
from ember.records.errors import EmberError

Adapter = Mapping[tuple[int, str], LowRank]
"""Adapted projections by (layer, "k_proj" or "v_proj"); others do not touch KV directly."""


class StaleFactors(EmberError):
    """Kept low-rank activations do not fit the adapter they are to be corrected by."""


class CorrectableCache(ContiguousCache):
    """One prompt's KV; `factors` (capacity, r) by projection, `raw_keys` (capacity, Hkv, D)."""

    def __init__(
        self,
        arch: Architecture,
        capacity: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(arch, 1, capacity, device, dtype)
        self.arch = arch
        self.adapter: Adapter | None = None  # of the present weights; None keeps nothing
        self.made_by: list[Adapter | None] = [None] * arch.num_layers  # None: mixed or not kept
        self.factors: dict[tuple[int, str], Tensor] = {}
        self.raw_keys: dict[int, Tensor] = {}
        self._norms: dict[int, nn.Module | None] = {}

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """As ContiguousCache; keeps factors and raw keys beside where an adapter is given."""
        start = self.length(layer)
        if start and self.made_by[layer] is not self.adapter:
            self.made_by[layer] = None
        else:
            self.made_by[layer] = self.adapter
            self._keep(layer, start, k, rotation.norm, source)
        return super().update(layer, k, v, rotation, source)

    @torch.inference_mode()
    def correct(self, adapter: Adapter, first_layer: int = 0) -> int:
        """Corrects layers from `first_layer` on for the change to `adapter`, which holds from now.

        Returns the number of corrected projections. Raises StaleFactors, and has changed nothing,
        if A moved or nothing was kept.
        """
        layers = range(first_layer, self.arch.num_layers)
        if any(self.made_by[layer] is None for layer in layers):
            raise StaleFactors(
                "this prompt's KV cannot be corrected: it was made without keeping factors, or in "
                "parts by different weights; refresh it in full with the adapter given"
            )
        moved = {
            (layer, name): change
            for layer in layers
            for name in ("k_proj", "v_proj")
            if (change := _moved(self.made_by[layer], adapter, (layer, name))) is not None
        }
        rotaries: dict[tuple[bool, int], Rotary] = {}
        for (layer, name), change in moved.items():
            keys, values = self.read(layer)  # (1, Hkv, T, D)
            change = self.factors[layer, name][: self.length(layer)] @ change.T  # (T, Hkv·D)
            change = change.unflatten(-1, (-1, self.arch.head_dim))  # (T, Hkv, D)
            if name == "v_proj":
                values += change.transpose(0, 1)
                continue
            kind = (self.arch.rope_is_local(layer), len(change))
            if kind not in rotaries:
                positions = torch.arange(len(change), device=keys.device)
                rotaries[kind] = Rotary(self.arch, positions, keys.dtype, kind[0])
            rotation = KeyRotation(self._norms[layer], rotaries[kind])
            if rotation.norm is None:  # rotation is linear: correct what is stored
                keys += rotation(change[None])
            else:
                raw = self.raw_keys[layer][: len(change)]
                raw += change
                keys.copy_(rotation(raw[None]))
        for layer in layers:
            self.made_by[layer] = adapter
        return len(moved)

    def copy_prefix(self, other: "CorrectableCache", tokens: int) -> None:
        """Takes the first `tokens` tokens, and what is kept of them, from another prompt."""
        self._norms |= other._norms
        for layer in self.layers:
            alike = self.length(layer) <= tokens or self.made_by[layer] is other.made_by[layer]
            self.made_by[layer] = other.made_by[layer] if alike else None
            self.write(layer, 0, *other.read(layer, 0, tokens))
        for mine, theirs in ((self.factors, other.factors), (self.raw_keys, other.raw_keys)):
            for key, kept in theirs.items():
                self._put(mine, key, 0, kept[:tokens])

    def _keep(
        self, layer: int, start: int, k: Tensor, norm: nn.Module | None, source: Tensor
    ) -> None:
        self._norms[layer] = norm
        adapted = [n for n in ("k_proj", "v_proj") if (layer, n) in (self.adapter or {})]
        for name in adapted:
            factors = source[0] @ self.adapter[layer, name].a.T  # (T, r)
            self._put(self.factors, (layer, name), start, factors)
        if norm is not None and "k_proj" in adapted:
            self._put(self.raw_keys, layer, start, k[0])

    def _put(self, store: dict, key, start: int, kept: Tensor) -> None:
        shape = (self.capacity, *kept.shape[1:])
        if key not in store or store[key].shape != shape:
            store[key] = kept.new_empty(shape)
        store[key][start : start + len(kept)] = kept


def _moved(before: Adapter, after: Adapter, key: tuple[int, str]) -> Tensor | None:
    """Change of scale·b of a projection, (out, r); None if there is none."""
    old, new = before.get(key), after.get(key)
    if new is old:
        return None
    if old is None or new is None or not (new.a is old.a or torch.equal(new.a, old.a)):
        raise StaleFactors(
            "the adapter's A has changed (or a projection was added or dropped), and the stored "
            "activations belong to the old one; train B only, or refresh in full when A moves"
        )
    if new.b is old.b and new.scale == old.scale:
        return None
    return new.scale * new.b - old.scale * old.b
