"""What every number format has in common: codes, scales, packing, bytes, and the registry.

Contract. A format turns values (…, N) into codes, one for each value, and into `parts` (scales and
the like), which groups of neighbouring values of the last dimension share. `dequantise` gives the
values back from both, whether or not they were packed in between: what is simulated and what is
sent or stored are the same numbers, bit for bit. Nothing here is random but what takes a generator.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.formats.codes import pack_codes, unpack_codes
from ember.records.errors import EmberError, nearest


class FormatError(EmberError):
    """Values or packed data that a number format cannot take; the message says how to fix it."""


@dataclass(frozen=True)
class Quantised:
    """Values (…, N) in a number format, a code to a byte."""

    format: str
    codes: Tensor  # (…, N) uint8
    parts: Mapping[str, Tensor]  # scales and the like, by name


@dataclass(frozen=True)
class Packed:
    """The same as it is stored or sent."""

    format: str
    shape: tuple[int, ...]  # of the values
    data: Tensor  # (bytes,) uint8: codes side by side, the last byte filled up with zeros
    parts: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Of codes and parts; names and shapes are not counted."""
        return self.data.nbytes + sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Format:
    """A number format. `quantise(x, **options)` and `dequantise(quantised)` are its own."""

    name: str
    bits: int  # of a code
    quantise: Callable[..., Quantised]
    dequantise: Callable[[Quantised], Tensor]  # float32
    block: int | None = None  # values that share a scale; None: the caller's choice
    options: tuple[str, ...] = ()  # keywords of `quantise`
    high_first: bool = False  # the first of two nibbles is the high one

    def pack(self, q: Quantised) -> Packed:
        """Codes side by side, `bits` each."""
        data = pack_codes(q.codes, self.bits, high_first=self.high_first)
        return Packed(q.format, tuple(q.codes.shape), data, q.parts)

    def unpack(self, packed: Packed) -> Quantised:
        """The inverse of `pack`. Raises FormatError where data and shape do not fit."""
        count = math.prod(packed.shape)
        needed = -(-count * self.bits // 8)
        if packed.data.numel() != needed:
            raise FormatError(
                f"{self.name}: {packed.data.numel()} bytes of codes for values "
                f"{tuple(packed.shape)}, which take {needed}; the data is cut off or of another "
                "shape: write it again"
            )
        codes = unpack_codes(packed.data, self.bits, count, high_first=self.high_first)
        return Quantised(packed.format, codes.view(packed.shape), packed.parts)


FORMATS: dict[str, Format] = {}
"""By name. Filled by `ember.formats.registry`, from which it should be imported."""


def register(format: Format) -> Format:
    """Makes a format known by its name."""
    FORMATS[format.name] = format
    return format


def format_named(name: str) -> Format:
    """Raises FormatError for an unknown name, naming the nearest."""
    if name not in FORMATS:
        raise FormatError(f"unknown number format {name!r}.{nearest(name, FORMATS)}")
    return FORMATS[name]


def finite(x: Tensor, name: str) -> Tensor:
    """x in float32. Raises FormatError for non-finite values and integer tensors."""
    if not x.is_floating_point():
        raise FormatError(f"{name}: values are {x.dtype}; quantise floating-point values")
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise FormatError(
            f"{name}: {bad} of {x.numel()} values are NaN or infinite; find where they come from "
            "before quantising"
        )
    return x


def grouped(x: Tensor, group: int | None, name: str) -> Tensor:
    """x (…, N) as (…, N / group, group). Raises FormatError where that leaves a rest."""
    size = x.shape[-1] if group is None else group
    if x.dim() == 0 or size < 1 or x.shape[-1] % size:
        raise FormatError(
            f"{name}: the last dimension of {tuple(x.shape)} is no multiple of {size}, the values "
            "that share a scale; choose another group, or pad the values"
        )
    return x.unflatten(-1, (-1, size))


def stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they are stored, kept inside the type's range: none is infinite, and none is 0
    whose values are not."""
    limits = torch.finfo(dtype)
    least = limits.smallest_normal
    kept = scales.clamp(max=limits.max)
    return torch.where(scales > 0, kept.clamp(min=least), scales).to(dtype)
