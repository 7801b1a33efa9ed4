"""A KV tensor (T, H, D) in a number format, along an axis: simulated, or packed to be sent.

Values that share a scale are brought side by side in the last dimension, which the formats work
along. Blocks of block formats may cross tokens and heads; the last is filled up with zeros.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.formats.pairs import RAW, problem
from ember.formats.registry import FormatError, Packed, Quantised, format_named


def check(scheme: str, axis: str, *, symmetric: bool = True) -> None:
    """Raises FormatError for a scheme and an axis that are no pair of `ember.formats.pairs`."""
    if wrong := problem(scheme, axis, symmetric=symmetric):
        raise FormatError(wrong)


@dataclass(frozen=True)
class Along:
    """A scheme along an axis: how KV of one layer is quantised."""

    scheme: str = RAW
    axis: str = "token"  # one of AXES
    symmetric: bool = True
    group: int = 16  # of axis `group`
    eps: float = 0.0  # smaller magnitudes are taken for 0

    def layout(self, shape: tuple[int, int, int]) -> tuple[int, dict[str, tuple]]:
        """Bytes of the codes of KV (n, H, D), and dtype and shape of each part: all that is sent.

        Raises FormatError where groups of that size do not fit.
        """
        count = math.prod(shape)
        if not count:
            return 0, {}
        if self.scheme == RAW:
            return 2 * count, {}
        format = format_named(self.scheme)
        rows, row = self._arranged(shape)
        codes = -(-rows * row * format.bits // 8)
        if self.scheme == "nf4":
            return codes, {"scales": (torch.float32, (row // format.block,))}
        if format.block:
            parts = {"scales": (torch.uint8, (rows, row // format.block))}
            if self.scheme == "nvfp4":
                parts["tensor_scale"] = (torch.float32, (1,))
            return codes, parts
        scales = (torch.float16, (rows, row // self._shared(row)))
        return codes, {"scales": scales} | ({} if self.symmetric else {"offsets": scales})

    def bytes(self, shape: tuple[int, int, int], *, parts: bool = True) -> int:
        """Of KV (n, H, D), with or without scales."""
        codes, found = self.layout(shape)
        sizes = (dtype.itemsize * math.prod(size) for dtype, size in found.values())
        return codes + sum(sizes) * parts

    def pack(self, x: Tensor) -> Packed:
        """KV (n, H, D) as it is sent."""
        if not x.numel():
            return Packed(self.scheme, tuple(x.shape), x.new_empty(0, dtype=torch.uint8), {})
        if self.scheme == RAW:
            data = _half(x).contiguous().view(-1).view(torch.uint8)
            return Packed(RAW, tuple(x.shape), data, {})
        if x.is_cuda and self.axis in ("token", "group") and self.symmetric and not self.eps:
            from ember.formats.rows_kernel import quantise_blocks, quantise_rows, serves

            # As of FP16, what is not finite is found where the blob is made.
            if self.scheme == "nf4" and x.numel() % format_named("nf4").block == 0:
                return quantise_blocks(x)
            rows = x.flatten(-2)
            group, bits = self._shared(rows.shape[-1]), format_named(self.scheme).bits
            if self.scheme.startswith("int") and serves(rows, bits, group):
                return quantise_rows(rows, bits, group, check=False)
        return format_named(self.scheme).pack(self._quantise(x))

    def unpack(self, data: Tensor, parts: Mapping[str, Tensor], shape: tuple[int, int, int]):
        """float32 (n, H, D) of what `pack` gave. Raises FormatError where sizes do not fit."""
        if not math.prod(shape):
            return torch.zeros(shape, device=data.device)
        if self.scheme == RAW:
            if data.numel() != 2 * math.prod(shape):
                raise FormatError(f"{data.numel()} bytes are no fp16 values {shape}: send it again")
            return data.contiguous().view(torch.float16).view(shape).float()
        format = format_named(self.scheme)
        packed = Packed(self.scheme, self._arranged(shape), data, parts)
        return self._restored(format.dequantise(format.unpack(packed)), shape)

    def simulate(self, x: Tensor) -> Tensor:
        """float32 (B, n, H, D): what `unpack(pack(one))` gives for each of B, without packing."""
        if self.scheme == RAW or not x.numel():
            return _half(x).float()
        if self.scheme == "nvfp4":  # its tensor scale is that of one tensor
            return torch.stack([self._round_trip(one) for one in x])
        return self._round_trip(x)

    def _round_trip(self, x: Tensor) -> Tensor:
        values = format_named(self.scheme).dequantise(self._quantise(x))
        return self._restored(values, tuple(x.shape[-3:]))

    def _quantise(self, x: Tensor) -> Quantised:
        """Of (…, n, H, D), each of the leading dimensions apart but for a scale of the tensor."""
        if self.eps:
            x = torch.where(x.abs() < self.eps, torch.zeros_like(x), x)
        if self.axis == "channel":
            rows = x.movedim(-3, -1).flatten(-3, -2)
        elif self.axis == "head":
            rows = x.transpose(-3, -2).flatten(-2)
        else:
            rows = x.flatten(-2)
        format = format_named(self.scheme)
        if format.block:
            flat = rows.flatten(-2)
            return format.quantise(F.pad(flat, (0, -flat.shape[-1] % format.block))[..., None, :])
        if self.axis == "layer":
            rows = rows.flatten(-2)[..., None, :]
        options = {} if self.symmetric else {"symmetric": False}
        return format.quantise(rows, group=self._shared(rows.shape[-1]), **options)

    def _restored(self, values: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """(…, n, H, D) of arranged values (…, rows, row)."""
        count, heads, size = shape
        flat = values.flatten(-2)[..., : math.prod(shape)]
        if self.axis == "channel":
            return flat.unflatten(-1, (heads, size, count)).movedim(-1, -3)
        if self.axis == "head":
            return flat.unflatten(-1, (heads, count, size)).transpose(-3, -2)
        return flat.unflatten(-1, shape)

    def _arranged(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Rows, and values of each, in which KV (n, H, D) is quantised."""
        count, heads, size = shape
        total, block = math.prod(shape), format_named(self.scheme).block
        if block:
            return 1, total + -total % block
        rows = {"layer": 1, "head": heads, "channel": heads * size}.get(self.axis, count)
        return rows, total // rows

    def _shared(self, row: int) -> int:
        """Values of a row that share a scale."""
        if self.axis != "group":
            return row
        if row % self.group:
            raise FormatError(
                f"a token has {row} values in a layer, no multiple of group {self.group}; "
                f"set group to a divisor of {row}"
            )
        return self.group


def _half(x: Tensor) -> Tensor:
    if x.is_cuda:
        from ember.formats.rows_kernel import halves

        return halves(x)
    half, most = x.half(), torch.finfo(torch.float16).max
    # In x's own dtype the greatest half may not be. Infinity stays, and the blob is refused.
    return torch.where(x.isinf(), half, half.clamp(-most, most))
