"""A KV cache of bounded length for endless streams: tokens drop out, the others close the gaps.

Contract. A token stands where it lies in the cache (StreamingLLM's semantics): its position is its
slot, a query's is the cache's length. Keys are kept before rotation and rotated. As rotation is
relative, slot s may be rotated for s + `offset`, the tokens dropped so far: what comes after all
that was dropped keeps its angles, and a drop rotates anew only what lies before it, the sinks
mostly. Angles are computed in float32, so beyond `FAR` positions all are counted from 0 again.

With `spare` memory it is a soft ring (S-5): what a drop leaves before its last gap moves up to the
rest, a few sinks mostly, instead of the rest down to it, and only where the memory ends is all
copied to its beginning. Attention reads one stretch of memory either way.

All rows and layers hold equally many tokens, but may hold different ones. Nothing is allocated
after construction but for a slot's bias, which only folding needs.

Shapes: L layers, B rows, Hq and Hkv query and KV heads, C capacity, D head dimension.
"""

import torch
from torch import Tensor

from ember.cache.base import BadCacheUse, CacheFull, KVCache, KVRead, refuse_gradients
from ember.model.architecture import Architecture
from ember.model.decoder import KeyRotation, rotary_tables, rotate
from ember.model.rope import UnsupportedModel

FAR = 4096  # positions from which on float32 angles would be coarser than 2.5e-4
FOLDED = -1  # the token number of a slot that stands for many


class StreamingCache(KVCache):
    """Keys and values of all layers, at most `capacity` tokens at a time.

    ids (L, B, C): number in its stream of the token in each slot. `mass` (L, B, Hq, C): attention
    mass that each slot got while `wants_mass` was on, `recent` that since the last drop.
    `copied_bytes`: keys and values moved to other slots, and keys rotated anew.
    With `absolute` tokens stand where they stood in the stream, which fails beyond the trained
    context: a control.
    """

    def __init__(
        self,
        arch: Architecture,
        batch: int,
        capacity: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        absolute: bool = False,
        spare: int = 0,
    ):
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch ({batch}) and capacity ({capacity}) must be 1 or more")
        if arch.sliding_layers:
            raise UnsupportedModel(
                f"layers {arch.sliding_layers} slide over {arch.sliding_window} tokens: they would "
                "not see the sinks, whatever this cache keeps.\n"
                "Stream with a model whose layers attend to all that is cached."
            )
        self.arch, self.absolute, self.wants_mass = arch, absolute, False
        self.capacity, self.spare = capacity, spare
        layers, heads, d, room = arch.num_layers, arch.num_kv_heads, arch.head_dim, capacity + spare
        wide = torch.promote_types(dtype, torch.float32)
        kv = torch.zeros((3, layers, batch, heads, room, d), device=device, dtype=dtype)
        masses = torch.zeros((2, layers, batch, arch.num_heads, room), device=device, dtype=wide)
        ids = torch.zeros((layers, batch, room), device=device, dtype=torch.long)
        self._memory = dict(zip(("raw", "k", "v"), kv, strict=True)) | {"ids": ids}
        self._memory |= dict(zip(("mass", "recent"), masses, strict=True))
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self._lengths = [0] * self.arch.num_layers
        self.offset = self.base = self.copied_bytes = self._begin = 0
        self._memory.pop("bias", None)
        self.bias: Tensor | None = None  # (L, B, Hq, C), added to the scores of folded slots
        for name in ("mass", "recent"):
            self._memory[name].zero_()
        self._observed = False
        self._look()

    def _look(self) -> None:
        """Slots from where the first one lies now."""
        stop = self._begin + self.capacity
        for name, memory in self._memory.items():
            seen = slice(self._begin, stop)
            setattr(self, name, memory[..., seen, :] if memory.ndim == 5 else memory[..., seen])

    @property
    def slots(self) -> int:
        """Tokens held now, the same in all layers between two calls."""
        return self._lengths[0]

    @property
    def seen(self) -> int:
        """Tokens that came so far, dropped or not."""
        return self.base + self.offset + self._lengths[0]

    def length(self, layer: int) -> int:
        """Tokens that a layer has now."""
        return self._lengths[layer]

    def positions(self, count: int, layer: int) -> Tensor:
        """Those after the last slot, counted from what the kept angles are counted from."""
        start = self.offset + self._lengths[layer]
        return torch.arange(start, start + count, device=self.k.device)

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """Stores keys before and after rotation, and values; returns all that is held."""
        start = self._lengths[layer]
        stop = start + k.shape[1]
        refuse_gradients(k)
        if stop > self.capacity:
            raise CacheFull(
                f"layer {layer} would hold {stop} tokens, but the cache's capacity is "
                f"{self.capacity}.\nDrop tokens before, or feed fewer at once."
            )
        if layer == 0 and self._begin + stop > self.capacity + self.spare:
            self._wrap()
        normed = rotation.normed(k)
        self.raw[layer, :, :, start:stop] = normed.transpose(1, 2)
        self.k[layer, :, :, start:stop] = rotate(normed, *rotation.rotary.tables).transpose(1, 2)
        self.v[layer, :, :, start:stop] = v.transpose(1, 2)
        if layer == 0:
            self.ids[:, :, start:stop] = torch.arange(
                self.seen, self.seen + k.shape[1], device=self.ids.device
            )
        self._lengths[layer] = stop
        bias = None if self.bias is None else self.bias[layer, :, :, None, :stop]
        return KVRead(self.k[layer, :, :, :stop], self.v[layer, :, :, :stop], bias)

    def observe(self, layer: int, mass: Tensor) -> None:
        """Adds a call's mass to that of its slots."""
        self._observed = True
        self.mass[layer, :, :, : mass.shape[2]] += mass
        self.recent[layer, :, :, : mass.shape[2]] += mass

    def drop(self, places: Tensor) -> None:
        """Drops the tokens at `places`: slots (n,), (B, n) or (L, B, n), each once, in any order.

        What is kept keeps its order. Raises `BadCacheUse` for places that are not held.
        """
        count, held = places.shape[-1], self.slots
        # Slots that are the same in all layers and rows stand once: (1, 1, n).
        alike = (1, 1) if places.ndim == 1 else self.ids.shape[:2]
        everywhere = places.expand(*alike, count).sort(-1).values
        inside = count and int(everywhere.min()) >= 0 and int(everywhere.max()) < held
        if not inside or bool((everywhere.diff(dim=-1) == 0).any()):
            raise BadCacheUse(
                f"cannot drop {places.tolist()} of {held} tokens.\n"
                "Give slots that are held, each once."
            )
        kept = torch.ones(*alike, held, dtype=torch.bool, device=self.ids.device)
        kept = kept.scatter_(2, everywhere, False).nonzero()[:, 2].view(*alike, -1)
        first, left = int(everywhere.min()), held - count
        head = int(everywhere.max()) + 1 - count  # kept tokens before the last gap
        if self.spare and head < left - first:
            start, found = 0, self._take(kept[:, :, :head])
            self._begin += count
            self._look()
        else:  # before the first gap nothing moves
            start, found = first, self._take(kept[:, :, first:])
        self._put(found, start)
        if self._observed:
            self.mass[..., left:] = 0
            self._memory["recent"].zero_()
        if self.bias is not None:
            self.bias[..., left:] = 0
        self._lengths = [left] * self.arch.num_layers
        self.offset += count
        # All before the last gap now stand nearer to the end than their angles say.
        if not self.absolute:
            if self.offset > FAR:
                self.base, self.offset, head = self.base + self.offset, 0, left
            self._rotate(head)

    def fold(self, place: int, k: Tensor, v: Tensor, bias: Tensor) -> None:
        """Puts one key and value for many in a slot, the same in all layers and rows.

        k and v (L, B, Hkv, D), the key rotated as the slot's is; `bias` (L, B, Hq) is added to the
        scores of its queries.
        """
        if self.bias is None:
            self._memory["bias"] = torch.zeros_like(self._memory["mass"])
            self._look()
        self.k[:, :, :, place], self.v[:, :, :, place] = k, v
        cos, sin = self._tables(place, place + 1)
        flat = k.flatten(0, 1)[:, None]  # (L B, 1, Hkv, D): turned back
        self.raw[:, :, :, place] = rotate(flat, cos, -sin).view(k.shape)
        self.bias[..., place] = bias
        self.ids[..., place] = FOLDED

    def _wrap(self) -> None:
        """Copies all that is held to the memory's beginning."""
        held = self.slots
        found = self._take(torch.arange(held, device=self.ids.device)[None, None])
        self._begin = 0
        self._look()
        self._put(found, 0)
        for rest in (self.mass, self.recent, self.bias):
            if rest is not None:
                rest[..., held:] = 0

    def _take(self, slots: Tensor) -> dict[str, Tensor]:
        """What lies in the slots (L, B, n) or (1, 1, n), as copies; masses if there were any."""
        names = [n for n in self._memory if self._observed or n not in ("mass", "recent")]
        return {name: _taken(getattr(self, name), slots) for name in names}

    def _put(self, found: dict[str, Tensor], start: int) -> None:
        """Stores what was taken in the slots from `start` on."""
        for name, taken in found.items():
            at = 3 if taken.ndim == 5 else taken.ndim - 1
            count = taken.shape[at]
            getattr(self, name).narrow(at, start, count).copy_(taken)
        self.copied_bytes += 3 * found["k"].nbytes

    def _rotate(self, slots: int) -> None:
        """Rotates the first keys anew, for where they stand now."""
        if slots:
            raw = self.raw[:, :, :, :slots].flatten(0, 1).transpose(1, 2)  # (L B, slots, Hkv, D)
            turned = rotate(raw, *self._tables(0, slots)).transpose(1, 2)
            self.k[:, :, :, :slots] = turned.view(*self.k.shape[:3], slots, -1)
            self.copied_bytes += self.k[:, :, :, :slots].numel() * self.k.element_size()

    def _tables(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions that slots start … stop have."""
        positions = torch.arange(start, stop, device=self.k.device) + self.offset
        return rotary_tables(self.arch, positions, self.k.dtype)


def _taken(held: Tensor, slots: Tensor) -> Tensor:
    at = 3 if held.ndim == 5 else held.ndim - 1  # the dimension of slots
    if slots.shape[:2] == (1, 1):
        return held.index_select(at, slots[0, 0])
    index = slots.view(*slots.shape[:2], *[1] * (at - 2), -1, *[1] * (held.ndim - at - 1))
    shape = [*held.shape]
    shape[at] = slots.shape[2]
    return held.gather(at, index.expand(shape))
