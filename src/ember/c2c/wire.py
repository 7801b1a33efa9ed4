"""The wire format of the channel: a payload as one blob, for readers who trust nothing in it.

Contract. `unpack(pack(payload))` is the payload, bit for bit; `len(pack(payload))` is what a point
of the curves costs. Blobs come from strangers: nothing is unpickled, every size is computed from
the header and compared with the blob's own length before anything is allocated, a header has one
spelling, and values that are not finite are refused. Whatever is wrong is a `WireError`. Layout and
versioning: docs/c2c-wire.md.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.c2c.channel import Part, Payload
from ember.formats import axes
from ember.formats.axes import Along
from ember.formats.base import FormatError
from ember.formats.pairs import RAW
from ember.records.errors import EmberError

MAGIC, VERSION = b"C2CW", 1
# Places are what the wire says: names are only ever added, at the end.
SCHEMES = (RAW, "int8", "int4", "int2", "fp8", "nf4", "nvfp4", "mxfp4")
AXES = ("layer", "head", "token", "channel", "group")
ROTATED, PARTIAL, WIDE, FLAGS = 1, 2, 4, 7
SYMMETRIC = 128  # beside the axis
MOST_LENGTH = 2**20  # tokens: the receiver makes masks of the length that a blob says
MOST_LAYERS, MOST_WIDTH = 2**12, 2**16
_CHECKSUM = 4
_ALIGNED = 4  # bytes; what follows the header starts there


class WireError(EmberError):
    """A blob that is damaged, cut off, hostile or of another version; a payload without a blob."""


@dataclass(frozen=True)
class Section:
    """A run of the blob: codes or a part of one layer's keys or values, or the indices."""

    kind: str  # indices, codes, or the name of a part
    entry: int  # layer, counted in the payload; -1: of all
    keys: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int  # first byte

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Kind:
    """What keys or values of a layer are sent as."""

    scheme: str
    axis: str
    symmetric: bool
    group: int
    heads: int
    size: int  # of a head

    @classmethod
    def of(cls, part: Part) -> "Kind":
        return cls(part.scheme, part.axis, part.symmetric, part.group, *part.shape[1:])


@dataclass(frozen=True)
class Header:
    """All that a blob says before its sections."""

    length: int
    tokens: int
    rotated: bool
    start: int  # the first token sent, of a run of neighbours
    index_bytes: int  # 0: such a run is sent
    layers: tuple[int, ...]
    keys: tuple[Kind, ...]
    values: tuple[Kind, ...]

    @classmethod
    def of(cls, payload: Payload) -> "Header":
        parts = (*payload.keys, *payload.values)
        counts = {part.shape[0] for part in parts}
        sent = payload.tokens if payload.index is None else len(payload.index)
        if not len(payload.layers) == len(payload.keys) == len(payload.values):
            raise _unsendable("keys, values and layers differ in number")
        if counts - {sent}:
            raise _unsendable(f"layers have {sorted(counts)} tokens, {sent} are to be sent")
        return cls(
            payload.length,
            sent,
            payload.rotated,
            payload.start,
            0 if payload.index is None else payload.index_bytes,
            payload.layers,
            tuple(map(Kind.of, payload.keys)),
            tuple(map(Kind.of, payload.values)),
        )

    def encoded(self) -> bytes:
        """The header's bytes, up to where sections start."""
        kinds = list(dict.fromkeys((*self.keys, *self.values)))
        flags = ROTATED * self.rotated + PARTIAL * bool(self.index_bytes)
        flags += WIDE * (self.index_bytes == 4)
        out = bytearray((*MAGIC, VERSION, flags))
        for number in (self.length, self.tokens, self.start, len(kinds), len(self.layers)):
            out += _varint(number)
        for kind in kinds:
            axis = AXES.index(kind.axis) + SYMMETRIC * kind.symmetric
            out += bytes((SCHEMES.index(kind.scheme), axis))
            for number in (kind.group, kind.heads, kind.size):
                out += _varint(number)
        for layer, key, value in zip(self.layers, self.keys, self.values, strict=True):
            for number in (layer, kinds.index(key), kinds.index(value)):
                out += _varint(number)
        return bytes(out) + bytes(-len(out) % _ALIGNED)

    def check(self) -> None:
        """Raises `WireError` for numbers that contradict each other or pass a bound."""
        if self.length > MOST_LENGTH:
            raise _bad(f"a passage of {self.length:,} tokens; at most {MOST_LENGTH:,} are read")
        if self.start + self.tokens > self.length or (self.start and self.index_bytes):
            raise _bad(f"{self.tokens} tokens from {self.start} on of a passage of {self.length}")
        if self.index_bytes == 2 and self.length > 2**16:
            raise _bad(f"indices of 2 bytes in a passage of {self.length} tokens")
        if len({*self.layers}) < len(self.layers) or max(self.layers, default=0) >= MOST_LAYERS:
            raise _bad(f"layers {self.layers[:8]} repeat or are no layers")
        for kind in {*self.keys, *self.values}:
            if not all(1 <= n < MOST_WIDTH for n in (kind.heads, kind.size, kind.group)):
                raise _bad(f"{kind.heads} heads of {kind.size} in groups of {kind.group}")

    def sections(self, start: int) -> list[Section]:
        """Those of the blob in its order: wide elements first, so that each lies aligned."""
        found = []
        if self.index_bytes:
            dtype = torch.uint32 if self.index_bytes == 4 else torch.uint16
            found.append(("indices", -1, False, dtype, (self.tokens,)))
        for entry, kinds in enumerate(zip(self.keys, self.values, strict=True)):
            for kind, keys in zip(kinds, (True, False), strict=True):
                shape = (self.tokens, kind.heads, kind.size)
                codes, parts = _layout(kind, shape)
                for name, (dtype, sizes) in parts.items():
                    found.append((name, entry, keys, dtype, sizes))
                # FP16 values are read as such: they lie as halves do.
                wide = kind.scheme == RAW
                dtype, count = (torch.float16, codes // 2) if wide else (torch.uint8, codes)
                found.append(("codes", entry, keys, dtype, (count,)))
        placed = []
        for one in sorted(found, key=lambda one: -one[3].itemsize):
            placed.append(Section(*one, start))
            start += placed[-1].bytes
        return placed


def pack(payload: Payload) -> bytes:
    """The payload as one blob. Raises `WireError` for one that contradicts itself."""
    return pack_buffer(payload).numpy().tobytes()


def pack_buffer(payload: Payload) -> Tensor:
    """The blob (bytes,) uint8 in host memory. From a GPU it takes one copy, into pinned memory."""
    header = Header.of(payload)
    header.check()
    try:
        head = header.encoded()
    except ValueError as error:  # a scheme or axis without a number
        raise _unsendable(str(error)) from None
    sections = header.sections(len(head))
    end = sections[-1].at + sections[-1].bytes if sections else len(head)
    pieces = [_piece(payload, section) for section in sections]
    device = payload.keys[0].codes.device if payload.keys else torch.device("cpu")
    buffer = torch.empty(end + _CHECKSUM, dtype=torch.uint8, pin_memory=device.type == "cuda")
    if pieces and device.type == "cuda":
        body = torch.cat([piece.to(device) for piece in pieces])
        buffer[len(head) : end].copy_(body)
    elif pieces:
        torch.cat(pieces, out=buffer[len(head) : end])
    blob = buffer.numpy()
    blob[: len(head)] = np.frombuffer(head, np.uint8)
    _check(header, sections, blob)
    blob[end:] = np.frombuffer(zlib.crc32(blob[:end]).to_bytes(_CHECKSUM, "little"), np.uint8)
    return buffer


def unpack(blob: bytes | bytearray | memoryview, device: str | torch.device = "cpu") -> Payload:
    """The payload of a blob, on `device` after one copy. Raises `WireError`.

    What it allocates is the blob once more. The receiver compares `length` with its own passage.
    """
    header, sections = _read(blob)
    whole = torch.frombuffer(bytearray(blob), dtype=torch.uint8).to(device)
    index: Tensor | None = None
    found: dict[tuple[int, bool], dict[str, Tensor]] = {}
    for one in sections:
        run = whole[one.at : one.at + one.bytes]
        if one.kind == "indices":
            index = run.view(one.dtype).long()
        else:
            value = run if one.kind == "codes" else run.view(one.dtype).view(one.shape)
            found.setdefault((one.entry, one.keys), {})[one.kind] = value
    return Payload(
        header.length,
        header.start,
        index,
        header.layers,
        tuple(_part(header, found, entry, True) for entry in range(len(header.layers))),
        tuple(_part(header, found, entry, False) for entry in range(len(header.layers))),
        header.rotated,
        header.index_bytes or 2,
    )


def inspect(blob: bytes | bytearray | memoryview) -> dict:
    """What a blob says and what its bytes are for; nothing but the blob is held in memory."""
    header, sections = _read(blob)
    return {
        "version": VERSION,
        "length": header.length,
        "tokens": header.tokens,
        "start": None if header.index_bytes else header.start,
        "rotated": header.rotated,
        "layers": [
            {"layer": layer, "keys": vars(key), "values": vars(value)}
            for layer, key, value in zip(header.layers, header.keys, header.values, strict=True)
        ],
        "bytes": len(blob),
        "header_bytes": len(header.encoded()) + _CHECKSUM,
        **{
            f"{name}_bytes": sum(one.bytes for one in sections if _purpose(one) == name)
            for name in ("indices", "codes", "scales")
        },
    }


def _purpose(section: Section) -> str:
    return section.kind if section.kind in ("indices", "codes") else "scales"


def _piece(payload: Payload, section: Section) -> Tensor:
    """Bytes of a section, of the dtype and size that the header will promise."""
    if section.kind == "indices":
        return payload.index.to(section.dtype).view(torch.uint8)
    part = (payload.keys if section.keys else payload.values)[section.entry]
    given = part.codes if section.kind == "codes" else part.parts.get(section.kind)
    fits = given is not None and given.nbytes == section.bytes
    fits &= section.kind == "codes" or given.dtype == section.dtype
    if not fits:
        raise _unsendable(f"{section.kind} of {part.scheme} by {part.axis} do not fit {part.shape}")
    return given.contiguous().view(-1).view(torch.uint8)


def _part(header: Header, found: dict, entry: int, keys: bool) -> Part:
    kind = (header.keys if keys else header.values)[entry]
    parts = dict(found[entry, keys])
    codes = parts.pop("codes")
    shape = (header.tokens, kind.heads, kind.size)
    return Part(kind.scheme, kind.axis, kind.symmetric, kind.group, shape, codes, parts)


def _layout(kind: Kind, shape: tuple[int, int, int]) -> tuple[int, dict[str, tuple]]:
    try:
        axes.check(kind.scheme, kind.axis, symmetric=kind.symmetric)
        return Along(kind.scheme, kind.axis, kind.symmetric, kind.group).layout(shape)
    except FormatError as error:
        raise _bad(f"no KV is sent so ({error})") from None


# Reading


def _read(blob) -> tuple[Header, list[Section]]:
    """Header and sections of a blob, everything checked against its length and content."""
    view = memoryview(blob)
    if len(view) < len(MAGIC) + 2 + _CHECKSUM or bytes(view[: len(MAGIC)]) != MAGIC:
        raise _bad("it does not begin as a payload does")
    if view[len(MAGIC)] != VERSION:
        raise WireError(
            f"the blob has version {view[len(MAGIC)]} of the wire format, read is {VERSION}\n"
            "send it again with the same version of Ember at both ends"
        )
    end = len(view) - _CHECKSUM
    if zlib.crc32(view[:end]) != int.from_bytes(view[end:], "little"):
        raise _bad("its checksum is not that of its content")
    header, start = _decoded(view[:end])
    sections = header.sections(start)
    wanted = sections[-1].at + sections[-1].bytes if sections else start
    if wanted != end:
        raise _bad(f"it promises {wanted + _CHECKSUM} bytes and has {len(view)}")
    _check(header, sections, np.frombuffer(view, np.uint8))
    return header, sections


def _decoded(view: memoryview) -> tuple[Header, int]:
    """The header, and where sections start."""
    flags, numbers = view[len(MAGIC) + 1], _Numbers(view, len(MAGIC) + 2)
    if flags & ~FLAGS:
        raise _bad(f"it has flags {flags}")
    length, tokens, start, kinds, layers = (numbers.next() for _ in range(5))
    # Each takes bytes of its own: more than there are bytes is no number of them.
    if kinds > len(view) or layers > min(len(view), MOST_LAYERS):
        raise _bad(f"it promises {layers} layers of {kinds} kinds")
    known = [_kind(numbers) for _ in range(kinds)]
    rows = [tuple(numbers.next() for _ in range(3)) for _ in range(layers)]
    if any(max(key, value) >= kinds for _, key, value in rows):
        raise _bad("a layer is of a kind that is not there")
    header = Header(
        length,
        tokens,
        bool(flags & ROTATED),
        start,
        0 if not flags & PARTIAL else 4 if flags & WIDE else 2,
        tuple(layer for layer, _, _ in rows),
        tuple(known[key] for _, key, _ in rows),
        tuple(known[value] for _, _, value in rows),
    )
    header.check()
    head = header.encoded()
    if bytes(view[: len(head)]) != head:
        raise _bad("its header is not spelled as one is written")
    return header, len(head)


def _kind(numbers: "_Numbers") -> Kind:
    scheme, axis = numbers.byte(), numbers.byte()
    if scheme >= len(SCHEMES) or axis % SYMMETRIC >= len(AXES):
        raise _bad(f"scheme {scheme} or axis {axis % SYMMETRIC} is unknown")
    group, heads, size = (numbers.next() for _ in range(3))
    return Kind(SCHEMES[scheme], AXES[axis % SYMMETRIC], axis >= SYMMETRIC, group, heads, size)


class _Numbers:
    """Numbers of a header, one after the other."""

    def __init__(self, view: memoryview, at: int):
        self.view, self.at = view, at

    def byte(self) -> int:
        if self.at >= len(self.view):
            raise _bad("it ends within its header")
        self.at += 1
        return self.view[self.at - 1]

    def next(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _bad("a number of its header has no end")


def _varint(number: int) -> bytes:
    """Seven bits a byte, the low ones first; all bytes but the last have their top bit set."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _check(header: Header, sections: Sequence[Section], blob: np.ndarray) -> None:
    """Raises `WireError` for indices that do not ascend and for what is not finite."""
    for one in sections:
        run = blob[one.at : one.at + one.bytes]
        if not run.size:
            continue
        if one.kind == "indices":
            index = run.view(np.uint32 if header.index_bytes == 4 else np.uint16)
            if index[-1] >= header.length or (index[1:] <= index[:-1]).any():
                raise _bad("its indices do not ascend within the passage")
        elif _strange((header.keys if one.keys else header.values)[one.entry].scheme, one, run):
            raise _bad(f"{one.kind} of layer {header.layers[one.entry]} are not finite")


def _strange(scheme: str, section: Section, run: np.ndarray) -> bool:
    """Whether bytes of a section stand for NaN or infinity, or for scales that lead there."""
    if section.dtype == torch.float16:
        return bool(((run.view(np.uint16) & 0x7C00) == 0x7C00).any())
    if section.dtype == torch.float32:
        return not bool((np.abs(run.view(np.float32)) < 2.0**100).all())
    if scheme == "fp8" or (scheme == "nvfp4" and section.kind == "scales"):
        return bool(((run & 0x7F) == 0x7F).any())
    return scheme == "mxfp4" and section.kind == "scales" and bool((run > 252).any())


def _bad(cause: str) -> WireError:
    return WireError(f"the blob is no payload: {cause}\nit is damaged or foreign: send it again")


def _unsendable(cause: str) -> WireError:
    return WireError(f"the payload cannot be sent: {cause}\nmake it with ember.c2c.channel.send")
