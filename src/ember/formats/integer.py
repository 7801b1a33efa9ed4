"""Integers of 2, 4 and 8 bits with a scale for each group, symmetric or asymmetric.

Symmetric codes stand for -(2**(bits-1) - 1) … 2**(bits-1) - 1 times the scale; asymmetric ones for
0 … 2**bits - 1 times the scale, above the group's least value, which is stored too.
"""

from functools import partial

import torch
from torch import Tensor

from ember.formats.base import Format, Quantised, finite, grouped, register, stored


def quantise(
    x: Tensor,
    *,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.float16,
    generator: torch.Generator | None = None,
) -> Quantised:
    """Codes of x (…, N); `group` neighbours share a scale (default: all N).

    With a generator rounding is stochastic, so that its mean is the value; else to nearest, ties to
    even. Scales are rounded to `scale_dtype` before the codes are taken.
    """
    name = f"int{bits}"
    values = grouped(finite(x, name), group, name)
    if symmetric:
        most, middle = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
        parts = {"scales": stored(values.abs().amax(-1) / most, scale_dtype)}
        low, high, shifted = -most, most, values
    else:
        low, high, middle = 0, 2**bits - 1, 0
        least, greatest = values.aminmax(dim=-1)
        limits = torch.finfo(scale_dtype)
        offsets = least.clamp(limits.min, limits.max).to(scale_dtype)
        span = greatest - offsets.float()
        parts = {"scales": stored(span.clamp(min=0) / high, scale_dtype), "offsets": offsets}
        shifted = values - offsets.float()[..., None]
    scales = parts["scales"].float()[..., None]
    steps = shifted / torch.where(scales > 0, scales, torch.ones_like(scales))
    whole = steps.round() if generator is None else stochastic(steps, generator)
    codes = (whole.clamp(low, high) + middle).to(torch.uint8)
    return Quantised(name, codes.flatten(-2), parts)


def dequantise(q: Quantised, *, bits: int) -> Tensor:
    """float32 values."""
    scales = q.parts["scales"].float()[..., None]
    codes = q.codes.unflatten(-1, (scales.shape[-2], -1)).float()
    if "offsets" in q.parts:
        values = codes * scales + q.parts["offsets"].float()[..., None]
    else:
        values = (codes - 2 ** (bits - 1)) * scales
    return values.flatten(-2)


def stochastic(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """x rounded up or down at random (None: by the device's own generator), so that the mean of
    many roundings is x."""
    device = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, generator=generator, device=device).to(x.device)
    return (x + noise).floor()


def integer_format(bits: int) -> Format:
    """int2, int4 or int8."""
    return register(
        Format(
            f"int{bits}",
            bits,
            partial(quantise, bits=bits),
            partial(dequantise, bits=bits),
            options=("group", "symmetric", "scale_dtype", "generator"),
        )
    )
