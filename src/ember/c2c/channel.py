"""The channel from sharer to receiver: which tokens of its KV are sent, and in which format.

What crosses it is a `Payload` for each item, and nothing else: the sharer's KV, in the sharer's
shape, of the layers that an open gate uses and the tokens that were selected.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Keys or values of one sharer layer as they are sent (`ember.formats.axes.Along`)."""

    scheme: str  # fp16, or a format of ember.formats.registry
    axis: str  # one of ember.formats.axes.AXES
    symmetric: bool
    group: int  # values that share a scale, of axis `group`
    shape: tuple[int, int, int]  # tokens sent, heads, head dimension
    codes: Tensor  # (bytes,) uint8
    parts: Mapping[str, Tensor]  # scales and the like; their sizes follow from `Along.layout`

    @property
    def bytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Payload:
    """One item's KV on its way."""

    length: int  # tokens of the passage, sent or not
    start: int  # the first token sent, where `index` is None
    index: Tensor | None  # (n,) int64, ascending: the tokens sent; None: n neighbours from `start`
    layers: tuple[int, ...]  # the sharer's layer of each entry of keys and values
    keys: tuple[Part, ...]
    values: tuple[Part, ...]
    rotated: bool  # whether keys are rotated to their positions
    index_bytes: int = 2  # of an entry of `index`: 2 or 4

    @property
    def tokens(self) -> int:
        """How many are sent."""
        return self.keys[0].shape[0] if self.keys else 0

    @property
    def bytes(self) -> int:
        """Of codes, scales and indices; a header and its shapes are not counted."""
        index = 0 if self.index is None else self.index_bytes * len(self.index)
        return index + sum(part.bytes for part in (*self.keys, *self.values))
