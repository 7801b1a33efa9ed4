"""Products of many rows with 4-bit weights, by the library: dequantised, in FP8, or in FP4 units.

Contract. `linear` is what `F.linear` is for dense weights. Up to 64 rows `packed.product` chooses;
above, the weight is written dense and multiplied ("dequantise"), or it and x are converted to E4M3
first ("fp8"), which rounds both.
"""

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.backends.cuda.packed import MOST_BATCH, dense, product
from ember.backends.packing import Weight
from ember.formats import fp8
from ember.formats.base import FormatError, format_named
from ember.formats.scale_layout import to_blocked
from ember.model.packed import PackedMatrix

EIGHTH = 1 / 8  # codes times block scales reach 6 · 448, E4M3 448


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, by: str = "dequantise") -> Tensor:
    """x (M, K) · weightᵀ (+ bias); `by`: how many rows are multiplied by packed weights."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if by == "fp8" and len(x) > MOST_BATCH:
        out = by_fp8(x, weight)
        return out if bias is None else out + bias
    return product(x, weight, bias)


def by_fp8(x: Tensor, weight: PackedMatrix) -> Tensor:
    """x (M, K) · weightᵀ of NVFP4 codes in E4M3: a scale for each row of x and of the weight.

    Needs FP8 matrix units (compute capability 8.9), and dimensions that 16 divides.
    """
    if weight.format != "nvfp4":
        raise FormatError(f"{weight.format} is not converted to FP8; dequantise it")
    counts = [end - start for start, end in pairwise((0, *weight.ends))]
    each = [one.expand(count) for one, count in zip(weight.overall, counts, strict=True)]
    rows = torch.cat(each)
    codes = dense(_unscaled(weight), torch.float8_e4m3fn, EIGHTH)
    wide = x.float()
    scale = (wide.abs().amax(1, keepdim=True) / fp8.MOST).clamp(min=1e-30)
    return torch._scaled_mm(
        fp8.e4m3(wide / scale),
        codes.t(),
        scale_a=scale,
        scale_b=(rows / EIGHTH)[None, :].contiguous(),
        out_dtype=x.dtype if x.dtype == torch.bfloat16 else torch.float32,
    ).to(x.dtype)


def by_fp4(x: Tensor, weight: PackedMatrix) -> Tensor:
    """x (M, K) · weightᵀ in FP4 matrix units (sm_100 and later), x in NVFP4, too; of one part."""
    from torch.nn.functional import ScalingType, SwizzleType, scaled_mm

    if weight.format != "nvfp4" or len(weight.ends) != 1:
        raise FormatError("FP4 matrix units multiply by one NVFP4 weight at a time")
    kind = format_named("nvfp4")
    q = kind.quantise(x)
    codes = kind.pack(q).data.view(len(x), -1)
    recipe = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
    swizzle = [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
    return scaled_mm(
        codes.view(torch.float4_e2m1fn_x2),
        weight.lay("file").codes.view(torch.float4_e2m1fn_x2).t(),
        [_blocked(q.parts["scales"]), q.parts["tensor_scale"]],
        recipe,
        [_blocked(weight.scales), weight.overall],
        recipe,
        swizzle_a=swizzle,
        swizzle_b=swizzle,
        output_dtype=x.dtype,
    )


def _blocked(scales: Tensor) -> Tensor:
    return to_blocked(scales).view(torch.float8_e4m3fn)


def _unscaled(weight: PackedMatrix) -> PackedMatrix:
    """Without the overall scale, which multiplies the result instead."""
    ones = torch.ones_like(weight.overall)
    return replace(weight, overall=ones)
