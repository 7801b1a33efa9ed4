"""What a sharer gives: keys and values of the tokens that a receiver fuses, and what a selector of
them may look at.

Contract. A `SourceKV` is all that crosses the wire: the sharer's layers that an open gate uses, in
the sharer's own shape. It stands in the receiver's frame: entry t of the batch's rows belongs to
the receiver's token t, whatever tokenizer the sharer has (`ember.c2c.pair.share`).

Shapes: B batch, T tokens of the receiver before its last section, Hs and Ds the sharer's KV heads
and their dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of a layer, (B, T, H, D) each."""


@dataclass(frozen=True)
class SourceKV:
    """Keys and values (B, T, Hs, Ds) of some of the sharer's layers.

    `layers` are their numbers, `tokens` (B, T) says which entries are sent (the others hold
    anything finite), and `rotated` whether keys are after rotation, as published, or before.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    layers: tuple[int, ...]
    tokens: Tensor
    rotated: bool

    def of(self, layer: int) -> LayerKV:
        """Keys and values of a sharer's layer."""
        place = self.layers.index(layer)
        return self.keys[place], self.values[place]

    def map(self, change: Callable[[Tensor], Tensor]) -> "SourceKV":
        """With every key and value tensor changed, the rest as it is."""
        keys, values = (tuple(map(change, part)) for part in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def to(self, device, dtype: torch.dtype | None = None) -> "SourceKV":
        """On another device, in another format."""
        moved = self.map(lambda x: x.to(device, dtype or x.dtype))
        return replace(moved, tokens=self.tokens.to(device))

    def token_bytes(self, element_bytes: float) -> float:
        """Bytes of one token's keys and values, by the sharer's shape."""
        return element_bytes * sum(x.shape[-2] * x.shape[-1] for x in (*self.keys, *self.values))


@dataclass(frozen=True)
class Context:
    """What a selector may look at beside the source.

    `instruction` (B, T): tokens of the instruction. `texts` (B,) int64: a number of each text that
    the sharer reads (`ember.c2c.evaluate.number_of`), the same in any batch. `own()`: the
    receiver's own keys and values of each of its layers, which a sender does not have: a selector
    that calls it is an oracle, unless their traffic is charged. None where the receiver is not
    loaded (sequential mode). `fuser`: its projections of the source alone can be computed by a
    sender that holds it.
    """

    instruction: Tensor
    texts: Tensor
    own: Callable[[], list[LayerKV]] | None
    fuser: torch.nn.Module | None


@dataclass(frozen=True)
class Sent:
    """What a channel delivers, and the bytes that each of the batch's items took. `lost` (B, T):
    tokens whose own keys and values the receiver puts to 0, if any."""

    source: SourceKV
    bytes: Sequence[int]
    lost: Tensor | None = None


Transmit = Callable[[SourceKV, Context], Sent]


def send_float16(source: SourceKV, context: Context) -> Sent:
    """The channel at FP16: every token, rounded to float16; no header is counted."""
    rounded = source.map(lambda x: x.half().to(x.dtype))
    each = source.token_bytes(2)
    return Sent(rounded, [int(n * each) for n in source.tokens.sum(1).tolist()])
