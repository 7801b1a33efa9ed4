"""NVFP4: E2M1 codes, a scale in E4M3 for every 16 neighbours, and one float32 scale a tensor.

`tensor_scale` = amax / (6 · 448), kept away from 0 so that zeros give zeros; `headroom` above 1
leaves room for values that grow while it stays. A block's scale is E4M3(amax of the block / 6 /
tensor_scale), at least 2**-6. Codes, scales and values equal torchao's, bit for bit.
"""

import torch
from torch import Tensor

from ember.formats import e2m1, fp8
from ember.formats.base import Format, FormatError, Quantised, finite, grouped, register

BLOCK = 16
LEAST_SCALE = 2.0**-6  # of a block: E4M3's smallest normal number
LEAST_TENSOR_SCALE = 2.0**-120  # below, the reciprocal of both scales is infinite


def tensor_scale(x: Tensor, headroom: float = 1.0) -> Tensor:
    """() float32: amax / (6 · 448), times `headroom`."""
    if headroom < 1:
        raise FormatError(f"nvfp4: headroom is {headroom}; below 1 the largest values are clamped")
    amax = x.abs().max().float() if x.numel() else x.new_zeros((), dtype=torch.float32)
    return (amax * headroom / (e2m1.MOST * fp8.MOST)).clamp(min=LEAST_TENSOR_SCALE)


def quantise(x: Tensor, *, headroom: float = 1.0, scale: Tensor | None = None) -> Quantised:
    """Codes of x (…, N), N a multiple of 16; `scale`: a tensor scale from elsewhere."""
    values = grouped(finite(x, "nvfp4"), BLOCK, "nvfp4")
    overall = tensor_scale(values, headroom) if scale is None else scale.float()
    scales = values.abs().amax(-1) / e2m1.MOST / overall
    scales = fp8.e4m3(scales.clamp(min=LEAST_SCALE))
    # One product with the joint reciprocal, as on the hardware.
    factor = (1.0 / overall) / scales.float()
    codes = e2m1.encode(values * factor[..., None])
    parts = {"scales": scales.view(torch.uint8), "tensor_scale": overall.reshape(1)}
    return Quantised("nvfp4", codes.flatten(-2), parts)


def dequantise(q: Quantised) -> Tensor:
    """float32 values."""
    scales = q.parts["scales"].view(torch.float8_e4m3fn).float() * q.parts["tensor_scale"]
    values = e2m1.decode(q.codes.unflatten(-1, (-1, BLOCK)))
    return (values * scales[..., None]).flatten(-2)


NVFP4 = register(
    Format("nvfp4", 4, quantise, dequantise, block=BLOCK, options=("headroom", "scale"))
)
