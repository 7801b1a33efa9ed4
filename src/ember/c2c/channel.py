"""The channel from sharer to receiver: which tokens of its KV are sent, and in which format.

What crosses it is a `Payload` for each item, and nothing else: the sharer's KV, in the sharer's
shape, of the layers that an open gate uses and the tokens that were selected.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from ember.c2c.fuser import Fuser
from ember.c2c.points import ALL
from ember.c2c.schedule import NONE, by_sharer, readers
from ember.c2c.select import SELECTORS, Selection
from ember.c2c.source import Context, Sent, SourceKV
from ember.formats.axes import Along, check
from ember.formats.pairs import RAW, axes_of
from ember.records.errors import EmberError


class BadChannel(EmberError):
    """A channel, or payloads, that cannot be; the message says how to fix it."""


@dataclass(frozen=True)
class Part:
    """Keys or values of one sharer layer as they are sent (`ember.formats.axes.Along`)."""

    scheme: str  # fp16, or a format of ember.formats.registry
    axis: str  # one of ember.formats.pairs.AXES
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


@dataclass(frozen=True)
class Channel:
    """Precision by layer, and selection. Raises FormatError for a scheme on an axis it has not."""

    scheme: str = RAW
    axis: str = "token"  # one of ember.formats.pairs.AXES, or SPLIT
    symmetric: bool = True
    group: int = 16
    eps: float = 0.0
    layers: Mapping[int, str] = field(default_factory=dict)  # by the sharer's layer; or NONE
    selection: Selection = field(default_factory=Selection)
    scatter_fill: str = "receiver_only"  # what stands where nothing was sent; or: zeros
    index_dtype_bytes: int = 2
    include_scale_overhead: bool = True  # whether estimates count scales and indices

    def __post_init__(self):
        for scheme in {self.scheme, *self.layers.values()} - {NONE}:
            check(scheme, self.axis, symmetric=self.symmetric)

    @cached_property
    def axes(self) -> tuple[str, str]:
        """Of keys and of values."""
        return axes_of(self.axis)

    def along(self, layer: int, axis: str) -> Along:
        """How a sharer's layer is quantised."""
        scheme = self.layers.get(layer, self.scheme)
        return Along(scheme, axis, self.symmetric, self.group, self.eps)

    def kept(self, source: SourceKV) -> SourceKV:
        """The source without layers that the schedule does not send."""
        kept = [n for n, layer in enumerate(source.layers) if self.layers.get(layer) != NONE]
        if len(kept) == len(source.layers):
            return source
        keys, values, layers = (
            tuple(part[n] for n in kept) for part in (source.keys, source.values, source.layers)
        )
        return SourceKV(keys, values, layers, source.tokens, source.rotated)

    def choose(self, source: SourceKV, context: Context) -> Tensor:
        """(B, T) bool: tokens that are sent."""
        return self.selection.choose(source, context, self.selection.scores(source, context))

    def send(self, source: SourceKV, context: Context) -> list[Payload]:
        """A payload for each of the batch's items."""
        chosen = self.choose(source, context)
        return [self.payload(source, chosen, item) for item in range(len(chosen))]

    def payload(self, source: SourceKV, chosen: Tensor, item: int) -> Payload:
        """What is sent of one item, of whose tokens (B, T) `chosen` says which."""
        source = self.kept(source)
        index = chosen[item].nonzero()[:, 0]
        if source.tokens.shape[1] > 256**self.index_dtype_bytes:
            raise BadChannel(
                f"places of {source.tokens.shape[1]} tokens do not fit {self.index_dtype_bytes} "
                "bytes: set index_dtype_bytes to 4"
            )
        start = int(index[0]) if len(index) else 0
        run = is_run(index)
        length = int(source.tokens[item].nonzero().amax()) + 1 if source.tokens[item].any() else 0
        return Payload(
            length,
            start if run else 0,
            None if run else index.cpu(),
            source.layers,
            self._parts(source.layers, [x[item, index] for x in source.keys], self.axes[0]),
            self._parts(source.layers, [x[item, index] for x in source.values], self.axes[1]),
            source.rotated,
            self.index_dtype_bytes,
        )

    def _parts(self, layers: Sequence[int], found: Sequence[Tensor], axis: str) -> tuple[Part, ...]:
        pairs = zip(layers, found, strict=True)
        return tuple(part_of(x, self.along(layer, axis)) for layer, x in pairs)

    def transmit(self, source: SourceKV, context: Context) -> Sent:
        """What `receive(send(…))` gives, bit for bit, without packing; bytes as estimated."""
        return self.deliver(source, self.choose(source, context), context)

    def deliver(self, source: SourceKV, chosen: Tensor, context: Context) -> Sent:
        """The same, of tokens chosen before."""
        source = self.kept(source)
        keys, values = (
            _through(source, x, chosen, partial(self.along, axis=axis))
            for x, axis in zip((source.keys, source.values), self.axes, strict=True)
        )
        sent = SourceKV(keys, values, source.layers, chosen, source.rotated)
        lost = source.tokens & ~chosen if self.scatter_fill == "zeros" else None
        return Sent(sent, self.estimate(source, chosen, context), lost)

    def estimate(self, source: SourceKV, chosen: Tensor, context: Context) -> list[int]:
        """Bytes of each item from the sharer's shape: tokens · 2 · heads · head dimension · bytes
        an element, summed over layers, with scales and indices where they are included; and what
        an oracle is charged."""
        source = self.kept(source)
        charged = 0
        if not self.selection.all:
            charged = SELECTORS[self.selection.mode].charged(context)
        kinds = [(int(row.sum()), is_run(row.nonzero()[:, 0])) for row in chosen.cpu()]
        known = {kind: self._estimate(source, *kind) for kind in {*kinds}}
        real = source.tokens.sum(1).tolist()
        return [known[kind] + charged * n for kind, n in zip(kinds, real, strict=True)]

    def _estimate(self, source: SourceKV, count: int, run: bool) -> int:
        overhead = self.include_scale_overhead
        total = self.index_dtype_bytes * count * (overhead and not run)
        for axis, found in zip(self.axes, (source.keys, source.values), strict=True):
            for layer, x in zip(source.layers, found, strict=True):
                shape = (count, *x.shape[-2:])
                total += self.along(layer, axis).bytes(shape, parts=overhead)
        return total


def part_of(x: Tensor, along: Along) -> Part:
    """KV (n, H, D) of one layer as it is sent."""
    packed = along.pack(x)
    kind = (along.scheme, along.axis, along.symmetric, along.group)
    return Part(*kind, tuple(x.shape), packed.data, packed.parts)


def receive(
    payloads: Sequence[Payload],
    tokens: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> SourceKV:
    """The sharer's KV in rows of so many tokens; `tokens` of it says what was sent, the rest is 0.

    Raises BadChannel for payloads that are no batch: of other layers, or longer than their rows.
    """
    first = payloads[0]
    there = torch.zeros(len(payloads), tokens, dtype=torch.bool, device=device)
    keys, values = [], []
    for row, one in zip(there, payloads, strict=True):
        if (one.layers, one.rotated) != (first.layers, first.rotated) or one.length > tokens:
            raise BadChannel(
                f"a payload of layers {one.layers} and {one.length} tokens beside one of layers "
                f"{first.layers} in rows of {tokens}: receive payloads of one sharer together"
            )
        index = one.index
        if index is None:
            index = torch.arange(one.start, one.start + one.tokens)
        row[index.to(device)] = True
        keys.append([_row(part, index, tokens, dtype, device) for part in one.keys])
        values.append([_row(part, index, tokens, dtype, device) for part in one.values])
    joined = [tuple(map(torch.stack, zip(*rows, strict=True))) for rows in (keys, values)]
    return SourceKV(*joined, first.layers, there, first.rotated)


def channel_of(point: Mapping, fuser: Fuser) -> Channel:
    """The channel of a point (`ember.c2c.points`); layer schedules are by the fuser's layers."""
    layers = {}
    if point["schemes"]:
        reading = readers(fuser.sources, fuser.open_gates())
        layers = by_sharer(point["schemes"].split(","), reading)
    mode = "front" if point["mode"] == ALL else point["mode"]
    said = (point[name] for name in ("proportion", "scope", "min_tokens", "seed"))
    return Channel(
        RAW if point["quantize_target"] == "base" else point["scheme"],
        point["axis"],
        point["symmetric"],
        point["group"],
        point["eps"],
        layers,
        Selection(mode, *said),
        point["scatter_fill"],
        point["index_dtype_bytes"],
        point["include_scale_overhead"],
    )


@contextmanager
def quantised_base(fuser: Fuser, point: Mapping) -> Iterator[None]:
    """Inside, the fuser reads the receiver's own KV (B, T, H, D) quantised as the point says, where
    its `quantize_target` is base or both. Nothing more is sent for it: it is a question of what the
    fuser bears."""
    hooks = []
    if point["quantize_target"] != "source":
        scheme, *rest = (point[name] for name in ("scheme", "symmetric", "group", "eps"))
        for layer in fuser:
            for branch, axis in zip((layer.key, layer.value), axes_of(point["axis"]), strict=True):
                along = Along(scheme, axis, *rest)
                hooks.append(branch.register_forward_pre_hook(partial(_with_base, along)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_base(along: Along, branch, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    source, own = inputs
    return source, along.simulate(own).to(own.dtype)


def is_run(index: Tensor) -> bool:
    """Whether ascending places are neighbours."""
    return not len(index) or int(index[-1] - index[0]) == len(index) - 1


def scales_of(part: Part) -> Tensor | None:
    """The scales of a part in float32; None of fp16, which has none."""
    scales = part.parts.get("scales")
    if scales is None:
        return None
    if part.scheme == "nvfp4":
        return scales.view(torch.float8_e4m3fn).float().flatten() * part.parts["tensor_scale"]
    if part.scheme == "mxfp4":
        return torch.exp2(scales.float().flatten() - 127)
    return scales.float().flatten()


def _row(part: Part, index: Tensor, tokens: int, dtype, device) -> Tensor:
    along = Along(part.scheme, part.axis, part.symmetric, part.group)
    row = torch.zeros(tokens, *part.shape[1:], dtype=dtype, device=device)
    row[index.to(device)] = along.unpack(part.codes, part.parts, part.shape).to(device, dtype)
    return row


def _through(
    source: SourceKV, found: Sequence[Tensor], chosen: Tensor, along: Callable[[int], Along]
) -> tuple[Tensor, ...]:
    """Each layer's (B, T, H, D) with the chosen tokens quantised and back, and the others 0.

    Rows of as many tokens go together.
    """
    if bool(chosen.all()):
        return tuple(
            along(layer).simulate(x).to(x.dtype)
            for layer, x in zip(source.layers, found, strict=True)
        )
    made = [torch.zeros_like(x) for x in found]
    counts = chosen.sum(1)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()
        columns = chosen[rows[:, 0]].nonzero()[:, 1].view(len(rows), count)
        for layer, x, out in zip(source.layers, found, made, strict=True):
            out[rows, columns] = along(layer).simulate(x[rows, columns]).to(x.dtype)
    return tuple(made)
