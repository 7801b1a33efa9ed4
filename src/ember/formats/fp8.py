"""FP8 E4M3 (finite, no infinity) with a scale for each group: the largest value becomes 448."""

import torch
from torch import Tensor

from ember.formats.base import Format, Quantised, finite, grouped, register, stored

MOST = 448.0


def e4m3(x: Tensor) -> Tensor:
    """float32 to E4M3, clamped first: whether a cast saturates depends on torch's release."""
    return x.clamp(-MOST, MOST).to(torch.float8_e4m3fn)


def quantise(
    x: Tensor, *, group: int | None = None, scale_dtype: torch.dtype = torch.float16
) -> Quantised:
    """Codes of x (…, N); `group` neighbours share a scale (default: all N)."""
    values = grouped(finite(x, "fp8"), group, "fp8")
    scales = stored(values.abs().amax(-1) / MOST, scale_dtype)
    wide = scales.float()[..., None]
    codes = e4m3(values / torch.where(wide > 0, wide, torch.ones_like(wide)))
    return Quantised("fp8", codes.view(torch.uint8).flatten(-2), {"scales": scales})


def dequantise(q: Quantised) -> Tensor:
    """float32 values."""
    scales = q.parts["scales"].float()[..., None]
    values = q.codes.contiguous().view(torch.float8_e4m3fn).float()
    return (values.unflatten(-1, (scales.shape[-2], -1)) * scales).flatten(-2)


FP8 = register(Format("fp8", 8, quantise, dequantise, options=("group", "scale_dtype")))
