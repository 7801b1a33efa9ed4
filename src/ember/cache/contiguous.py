"""A KV cache in one block of memory: every sequence of the batch from position 0 to `capacity`.

Contract. Layers fill independently (a forward may run some of them), but all rows of a layer have
the same length. Keys are stored rotated for the positions 0, 1, …, so tokens may be appended, cut
off at the end or overwritten, but not moved. Layers that slide over a window keep all tokens too.
Nothing is allocated after construction; what `update` and `read` return are views of the block.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ember.cache.base import BadCacheUse, CacheFull, KVCache, KVRead, refuse_gradients
from ember.model.architecture import Architecture
from ember.model.decoder import KeyRotation


class ContiguousCache(KVCache):
    """Keys and values of all layers as `kv`: (layers, 2, B, Hkv, capacity, D)."""

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
        shape = (arch.num_layers, 2, batch, arch.num_kv_heads, capacity, arch.head_dim)
        # Zeros, not empty memory: masked attention multiplies what is beyond the length by 0.
        self._adopt(torch.zeros(shape, device=device, dtype=dtype))

    @classmethod
    def over(cls, kv: Tensor) -> "ContiguousCache":
        """A cache over memory that someone else owns, empty at first."""
        view = cls.__new__(cls)
        view._adopt(kv)
        return view

    def _adopt(self, kv: Tensor) -> None:
        self.kv = kv
        self.layers = range(len(kv))
        self._lengths = [0] * len(kv)
        # A list of views, because indexing `kv` anew at each token costs more than the copy.
        self._keys_values = [(k, v) for k, v in (pair.unbind(0) for pair in kv.unbind(0))]

    @property
    def capacity(self) -> int:
        return self.kv.shape[4]

    @property
    def bytes(self) -> int:
        """Memory reserved, whatever the lengths."""
        return self.kv.nbytes

    def length(self, layer: int) -> int:
        """Tokens stored in a layer."""
        if layer not in self.layers:
            raise BadCacheUse(
                f"layer {layer} is not in this cache (it has {len(self.layers)}).\n"
                "Make the cache for the architecture that is run."
            )
        return self._lengths[layer]

    def positions(self, count: int, layer: int) -> Tensor:
        """Those directly after what the layer holds, (count,)."""
        start = self.length(layer)
        return torch.arange(start, start + count, device=self.kv.device)

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """Stores rotated keys and values after what is there; returns all of it as views."""
        start = self.length(layer)
        stop = start + k.shape[1]
        self.write(layer, start, rotation(k), v.transpose(1, 2))
        keys, values = self._keys_values[layer]
        return KVRead(keys[:, :, :stop], values[:, :, :stop])

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k and v (B or 1, Hkv, T, D) at start … start + T; the length grows if need be.

        `start` must not lie beyond the length: a gap would be attended to.
        """
        length, stop = self.length(layer), start + k.shape[2]
        refuse_gradients(k)
        if stop > self.capacity:
            raise CacheFull(
                f"layer {layer} would hold {stop} tokens, but the cache's capacity is "
                f"{self.capacity}.\nMake the cache (or the engine) with capacity={stop} or more."
            )
        if not 0 <= start <= length:
            raise BadCacheUse(
                f"cannot write at {start}: layer {layer} holds {length} tokens.\n"
                "Write within them or directly after the last."
            )
        keys, values = self._keys_values[layer]
        keys[:, :, start:stop].copy_(k)
        values[:, :, start:stop].copy_(v)
        self._lengths[layer] = max(length, stop)

    def read(self, layer: int, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Views of the keys and values at start … stop (by default up to the length)."""
        length = self.length(layer)
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise BadCacheUse(
                f"cannot read {start} … {stop}: layer {layer} holds {length} tokens.\n"
                "Read within them."
            )
        keys, values = self._keys_values[layer]
        return keys[:, :, start:stop], values[:, :, start:stop]

    def segment(self, row: int, start: int, stop: int) -> Tensor:
        """View of one row's KV in all layers, (layers, 2, Hkv, stop - start, D)."""
        if not 0 <= start <= stop <= min(self._lengths):
            raise BadCacheUse(
                f"cannot take {start} … {stop}: the shortest layer holds {min(self._lengths)} "
                "tokens.\nTake within them."
            )
        return self.kv[:, :, row, :, start:stop]

    def truncate(self, length: int, layers: Iterable[int] | None = None) -> None:
        """Forgets the tokens from `length` on, in `layers` (all by default)."""
        for layer in self.layers if layers is None else layers:
            if not 0 <= length <= self.length(layer):
                raise BadCacheUse(
                    f"cannot truncate to {length}: layer {layer} holds {self.length(layer)} "
                    "tokens.\nTruncate to that or less."
                )
            self._lengths[layer] = length

    def advance(self, tokens: int, layers: Iterable[int] | None = None) -> None:
        """Counts tokens that someone else has written into `kv`, in `layers` (all by default)."""
        chosen = self.layers if layers is None else layers
        longest = max((self._lengths[layer] for layer in chosen), default=-tokens) + tokens
        if longest > self.capacity:
            raise CacheFull(
                f"{longest} tokens do not fit: the cache's capacity is {self.capacity}.\n"
                f"Make the cache (or the engine) with capacity={longest} or more."
            )
        for layer in chosen:
            self._lengths[layer] += tokens

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self._lengths = [0] * len(self.layers)
