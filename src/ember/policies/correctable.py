"""A KV cache that can be corrected in place when an adapter's B moves (P1-8.1).

Contract. Where the weights' low-rank part is given, a run also leaves, token by token, the
activations x·Aᵀ of adapted layers' key and value projections (r numbers each) and, where the
architecture norms keys, the raw ones. `correct` then moves K and V by s·(xAᵀ)ΔBᵀ: exact in the
first layer that changed, approximate above it, where x itself has moved. On CUDA that is one kernel
for all layers (`backends.cuda.correction`), elsewhere torch's operators layer by layer.

A must stand still: if it trains too, the kept activations belong to the old A; the correction then
needs x itself (H numbers a token instead of r) and has rank 2r, so it is refused.

Shapes: N adapted layers, T tokens, r the largest rank (what is smaller, or not adapted beside a
projection that is, is zero), Hkv KV heads, D head dimension, H hidden size.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ember.backends.forward import sent
from ember.backends.select import Case, unsupported_reason
from ember.cache.contiguous import ContiguousCache
from ember.cache.copying import copy_kv
from ember.lora.adapter import LowRank
from ember.model.decoder import Decoder, KeyRotation, Rotary, Tap
from ember.records.errors import EmberError

Adapter = Mapping[tuple[int, str], LowRank]
"""Adapted projections by (layer, "k_proj" or "v_proj"); others do not touch KV directly. Neither
the mapping nor its tensors may change: another adapter is another object."""

PROJECTIONS = ("k_proj", "v_proj")
Band = tuple[int, int, int]
"""Layers first … end, of which the tokens from the third number on are computed."""


MOVED = (
    "the adapter's A has changed (or a projection was added or dropped), and the stored "
    "activations belong to the old one; train B only, or refresh in full when A moves"
)


class StaleFactors(EmberError):
    """Kept low-rank activations do not fit the adapter they are to be corrected by."""


class Stack(NamedTuple):
    """An adapter in one piece; see `stacked`."""

    layers: tuple[int, ...]  # N, ascending
    places: Tensor  # (N,) int32, the same on the device
    a: Tensor  # (N, 2, r, H), of keys and values
    b: Tensor  # (N, 2, Hkv D, r), times the scale


class CorrectableCache(ContiguousCache):
    """One prompt's KV; `factors` (N, 2, capacity, r) and `raw_keys` (N, capacity, Hkv, D), None
    where there are none."""

    def __init__(self, decoder: Decoder, capacity: int):
        """In the decoder's format and on its device."""
        arch, weight = decoder.arch, decoder.embed_tokens.weight
        super().__init__(arch, 1, capacity, weight.device, weight.dtype)
        self.arch = arch
        self.made_by: list[Adapter | None] = [None] * arch.num_layers  # None: mixed or not kept
        self.adapted: tuple[int, ...] = ()  # layers of which something is kept
        self.factors: Tensor | None = None
        self.raw_keys: Tensor | None = None
        self._norms = [layer.self_attn.k_norm for layer in decoder.layers]
        case = Case(arch, weight.device, weight.dtype)
        self._fused = unsupported_reason("kernels", case) is None
        local = [arch.rope_is_local(layer) for layer in self.layers]
        kinds = torch.tensor([is_local and not all(local) for is_local in local])
        self._kinds = sent(kinds.to(torch.int32), weight.device)

    def keeping(self, bands: Sequence[Band], tokens: int, adapter: Adapter | None) -> Tap | None:
        """A run of the tokens up to `tokens` in these bands begins, by weights with this adapter;
        what the run has to tell of itself, None where nothing is kept."""
        if adapter is not None:
            found = stacked(adapter)
            raw = self.arch.qk_norm and any(name == "k_proj" for _, name in adapter)
            self._hold(found.layers, found.a.shape[2], raw=raw)
        for first, end, start in bands:
            for layer in range(first, end) if start < tokens else ():
                whole = not start or self.made_by[layer] is adapter
                self.made_by[layer] = adapter if whole else None
        if adapter is None:
            return None
        where = {layer: n for n, layer in enumerate(found.layers)}

        def tap(layer: int, name: str, x: Tensor) -> None:
            if layer not in where or self.made_by[layer] is not adapter:
                return
            place, new = where[layer], slice(tokens - x.shape[1], tokens)
            if name == "attn_in":
                both = x[0] @ found.a[place].flatten(0, 1).T  # (T, 2 r)
                self.factors[place, :, new] = both.unflatten(1, (2, -1)).transpose(0, 1)
            elif name == "k_raw" and self.raw_keys is not None:
                self.raw_keys[place, new] = x[0]

        return tap

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
        moved = [
            (layer, name)
            for layer in layers
            for name in PROJECTIONS
            if _moves(self.made_by[layer], adapter, (layer, name))
        ]
        if moved:
            found = stacked(adapter)
            if found.layers != self.adapted:
                raise StaleFactors(MOVED)
            low, high = (found.layers.index(layer) for layer in (moved[0][0], moved[-1][0]))
            here = slice(low, high + 1)
            before = [stacked(self.made_by[layer]).b for layer in found.layers[here]]
            if all(b is before[0] for b in before):
                old = before[0][here]
            else:
                old = torch.stack([b[low + n] for n, b in enumerate(before)])
            self._change(found, here, found.b[here] - old)
        for layer in layers:
            self.made_by[layer] = adapter
        return len(moved)

    def _change(self, found: Stack, here: slice, moved: Tensor) -> None:
        """K and V of the adapted layers `here` by moved (n, 2, Hkv D, r)."""
        layers = found.layers[here]
        tokens = max(self.length(layer) for layer in layers)
        raw = None if self.raw_keys is None else self.raw_keys[here]
        positions = torch.arange(tokens, device=self.kv.device)
        if self._fused:
            from ember.backends.cuda.attention import kinds_of_tables  # imports Triton
            from ember.backends.cuda.correction import correct

            tables = zip(*kinds_of_tables(self.arch, positions).values(), strict=True)
            tables = tuple(x[0][None] if len(x) == 1 else torch.stack(x) for x in tables)
            norms = None if raw is None else torch.stack([self._norms[n].weight for n in layers])
            correct(
                *(self.kv[:, :, 0], self.factors[here], moved, found.places[here]),
                *(tables, self._kinds),
                rotated=self.arch.rotary_dim,
                raw=raw,
                norms=norms,
                eps=self.arch.norm_eps,
                offset=self.arch.norm == "rms_offset",
            )
            return
        rotaries = {
            local: Rotary(self.arch, positions, self.kv.dtype, local)
            for local in {self.arch.rope_is_local(layer) for layer in layers}
        }
        for n, layer in enumerate(layers):
            keys, values = self.kv[layer, :, 0, :, :tokens]  # (Hkv, T, D)
            change = self.factors[here][n, :, :tokens] @ moved[n].mT  # (2, T, Hkv D)
            of_keys, of_values = change.unflatten(-1, (-1, self.arch.head_dim))  # (T, Hkv, D)
            values += of_values.transpose(0, 1)
            rotary = rotaries[self.arch.rope_is_local(layer)]
            if raw is None:  # rotation is linear: correct what is stored
                keys += KeyRotation(None, rotary)(of_keys[None])[0]
            else:
                raw[n, :tokens] += of_keys
                keys.copy_(KeyRotation(self._norms[layer], rotary)(raw[n : n + 1, :tokens])[0])

    def copy_prefix(self, other: "CorrectableCache", tokens: int) -> None:
        """Takes the first `tokens` tokens, and what is kept of them, from another prompt."""
        if other.factors is not None:
            self._hold(other.adapted, other.factors.shape[3], raw=other.raw_keys is not None)
        for layer in self.layers:
            alike = self.length(layer) <= tokens or self.made_by[layer] is other.made_by[layer]
            self.made_by[layer] = other.made_by[layer] if alike else None
            self.advance(max(0, tokens - self.length(layer)), [layer])
        copy_kv(self.kv[:, :, 0, :, :tokens], other.segment(0, 0, tokens))
        if other.factors is not None:
            self.factors[:, :, :tokens] = other.factors[:, :, :tokens]
        if other.raw_keys is not None:
            self.raw_keys[:, :tokens] = other.raw_keys[:, :tokens]

    def _hold(self, layers: tuple[int, ...], rank: int, *, raw: bool) -> None:
        """Memory for what is kept of these layers; what was kept in another form goes."""
        count, arch = len(layers), self.arch
        there = None if self.factors is None else self.factors.shape[3]
        if (layers, rank, raw) == (self.adapted, there, self.raw_keys is not None):
            return
        self.adapted, self.made_by = layers, [None] * len(self.layers)
        self.factors = self.kv.new_zeros(count, 2, self.capacity, rank)
        shape = (count, self.capacity, arch.num_kv_heads, arch.head_dim)
        self.raw_keys = self.kv.new_zeros(shape) if raw else None


_stacks: deque[tuple[Adapter, Stack]] = deque(maxlen=8)  # of adapters now in use


def stacked(adapter: Adapter) -> Stack:
    """An adapter's matrices in one tensor each, made once: all prompts of a round are corrected
    by the same ones."""
    for known, found in _stacks:
        if known is adapter:
            return found
    parts = {key: part for key, part in adapter.items() if key[1] in PROJECTIONS}
    layers = tuple(sorted({layer for layer, _ in parts}))
    some = next(iter(parts.values()), LowRank(*torch.zeros(2, 0, 0), 1.0))
    rank = max((len(part.a) for part in parts.values()), default=0)
    a = some.a.new_zeros(len(layers), 2, rank, some.a.shape[1])
    b = some.b.new_zeros(len(layers), 2, len(some.b), rank)
    for (layer, name), part in parts.items():
        place = layers.index(layer), PROJECTIONS.index(name)
        a[place][: len(part.a)] = part.a
        b[place][:, : len(part.a)] = part.scale * part.b
    places = torch.tensor(layers, dtype=torch.int32, device=a.device)
    _stacks.append((adapter, Stack(layers, places, a, b)))
    return _stacks[-1][1]


def _moves(before: Adapter, after: Adapter, key: tuple[int, str]) -> bool:
    """Whether scale·b of a projection changes."""
    old, new = before.get(key), after.get(key)
    if new is old:
        return False
    if old is None or new is None or not (new.a is old.a or torch.equal(new.a, old.a)):
        raise StaleFactors(MOVED)
    return new.b is not old.b or new.scale != old.scale
