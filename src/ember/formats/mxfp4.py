"""MXFP4 (OCP Microscaling 1.0): E2M1 codes and a power of two (E8M0) for every 32 neighbours.

The exponent is that of the block's largest value, less E2M1's own (2): values between 6 and 8 times
the scale are clamped to 6. Codes, scales and values equal torchao's (`FLOOR`), bit for bit.
"""

import torch
from torch import Tensor

from ember.formats import e2m1
from ember.formats.base import Format, Quantised, finite, grouped, register

BLOCK = 32
BIAS = 127
MOST_EXPONENT = 2  # of E2M1: 4 = 2**2 is its largest power of two


def quantise(x: Tensor) -> Quantised:
    """Codes of x (…, N), N a multiple of 32."""
    values = grouped(finite(x, "mxfp4"), BLOCK, "mxfp4")
    bits = values.abs().amax(-1).view(torch.int32)
    scales = ((bits >> 23) - MOST_EXPONENT).clamp(0, 2 * BIAS).to(torch.uint8)
    codes = e2m1.encode(values / _power(scales)[..., None])
    return Quantised("mxfp4", codes.flatten(-2), {"scales": scales})


def dequantise(q: Quantised) -> Tensor:
    """float32 values."""
    values = e2m1.decode(q.codes.unflatten(-1, (-1, BLOCK)))
    return (values * _power(q.parts["scales"])[..., None]).flatten(-2)


def _power(scales: Tensor) -> Tensor:
    """2 ** (scales - 127) in float32."""
    exponents = scales.to(torch.int32)
    power = (exponents << 23).view(torch.float32)  # 2**-127 is subnormal: bits of its own
    return torch.where(exponents > 0, power, torch.full_like(power, 2.0**-127))


MXFP4 = register(Format("mxfp4", 4, quantise, dequantise, block=BLOCK))
