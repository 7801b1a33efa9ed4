"""What a drop moves: tokens that stay before its last gap, out of a stream's arena and back in.

Keys are kept un-rotated in float32 from their first drop on, so that their roundings do not add up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.backends.forward import sent
from ember.cache.base import BadCacheUse
from ember.model.architecture import Architecture
from ember.model.decoder import rotary_tables, rotate


class Kept:
    """Keys before rotation and values of the first slots of an arena."""

    def __init__(
        self, arch: Architecture, kv: Tensor, slots: int, positions: int, *, kernels: bool
    ):
        """`kv` (L, 2, Hkv, T, D): the arena; `slots`: the most that a drop may take; `positions`:
        the most that a token stands at. `kernels`: by those of `ember.backends.cuda.kept`."""
        self._arch, self._kv, self._kernels = arch, kv, None
        shape = (arch.num_layers, arch.num_kv_heads, slots, arch.head_dim)
        self._keys, self._before = torch.zeros(2, *shape, device=kv.device)
        self._values = torch.zeros(shape, dtype=kv.dtype, device=kv.device)
        at = torch.arange(positions, device=kv.device)
        self.known = 0  # slots whose keys are here
        if kernels:
            from ember.backends.cuda import kept
            from ember.backends.cuda.attention import kinds_of_tables

            self._kernels, (cos, sin) = kept, kinds_of_tables(arch, at)[False]
            self._tables, self._back = (cos, sin), (cos, -sin)
        else:
            cos, sin = (x[0, :, 0] for x in rotary_tables(arch, at, torch.float32))
        self.cos, self.sin = (table[:, : arch.rotary_dim // 2] for table in (cos, sin))

    def take(self, kept: Sequence[int], after: int, begin: int, offset: int) -> None:
        """Takes the slots `kept`, before `after`, of an arena whose slot 0 lies at `begin` and is
        rotated for position `offset`. Slots from `after` on whose keys are known stay so. Raises
        `BadCacheUse` where these are more than there is room for."""
        slots = [*kept, *range(after, self.known)]
        if len(slots) > (room := self._keys.shape[2]):
            raise BadCacheUse(
                f"a drop leaves {len(slots)} tokens before its last gap, with room for {room}.\n"
                "Drop what lies right after the sinks, or by a method that reserves what it keeps."
            )
        known, self.known = self.known, len(slots)
        self._keys, self._before = self._before, self._keys
        if not slots:
            return
        if self._kernels is not None:
            memory = self._kv, self._before, self._keys, self._values
            numbers = {"kept": len(kept), "known": known, "begin": begin, "offset": offset}
            rotated = self._arch.rotary_dim
            found = *memory, self._sent(slots)
            self._kernels.take(*found, tables=self._back, rotated=rotated, **numbers)
            return
        old = sum(slot < known for slot in slots)
        if old:
            self._keys[:, :, :old] = self._before.index_select(2, self._sent(slots[:old]))
        if new := slots[old:]:
            lie, at = (self._sent([start + slot for slot in new]) for start in (begin, offset))
            turned = self._kv[:, 0].index_select(2, lie).float()
            self._keys[:, :, old : len(slots)] = rotate(turned, self.cos[at], -self.sin[at])
        if kept:
            lie = self._sent([begin + slot for slot in kept])
            self._values[:, :, : len(kept)] = self._kv[:, 1].index_select(2, lie)

    def put(self, count: int, begin: int, offset: int, *, values: bool) -> None:
        """Puts the first `count` to `begin`, keys rotated for positions from `offset` on; `values`:
        these, too."""
        if not count:
            return
        if self._kernels is not None:
            numbers = {"count": count, "begin": begin, "offset": offset}
            found, rotated = self._values if values else None, self._arch.rotary_dim
            memory = self._kv, self._keys, found
            self._kernels.put(*memory, tables=self._tables, rotated=rotated, **numbers)
            return
        at, here = slice(offset, offset + count), self._kv[..., begin : begin + count, :]
        here[:, 0].copy_(rotate(self._keys[:, :, :count], self.cos[at], self.sin[at]))
        if values:
            here[:, 1].copy_(self._values[:, :, :count])

    def _sent(self, numbers: Sequence[int]) -> Tensor:
        return sent(torch.tensor(numbers, dtype=torch.int32), self._kv.device)
