"""NF4: 16 quantiles of the normal distribution, a float32 scale (amax) for every 64 neighbours.

With double quantisation (QLoRA, arXiv 2305.14314) the scales, less their mean, take 8 bits of a
dynamic map each, in blocks of 256 with a float32 scale of their own. Values are taken in the order
of memory: blocks go across rows, and the last may be shorter. Codes, scales and values equal
bitsandbytes', bit for bit.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.formats.base import Format, FormatError, Quantised, finite, register

BLOCK, SCALES_BLOCK = 64, 256
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
LEAST = 1e-38  # a block of zeros is divided by this


def quantise(x: Tensor, *, double: bool = False, block: int = BLOCK) -> Quantised:
    """Codes of x (any shape); `double`: the scales are quantised, too."""
    if block < 1:
        raise FormatError(f"nf4: a block of {block} values; take 64, as bitsandbytes does")
    values = finite(x, "nf4")
    codes, scales = _quantise(values.reshape(-1), torch.tensor(VALUES, device=x.device), block)
    if not double:
        return Quantised("nf4", codes.view(x.shape), {"scales": scales})
    offset = scales.mean()
    again, outer = _quantise(scales - offset, dynamic_map().to(x.device), SCALES_BLOCK)
    parts = {"scales": again, "scales_scales": outer, "scales_offset": offset.reshape(1)}
    return Quantised("nf4", codes.view(x.shape), parts)


def dequantise(q: Quantised, *, block: int = BLOCK) -> Tensor:
    """float32 values."""
    scales = q.parts["scales"]
    if "scales_offset" in q.parts:
        outer, offset = q.parts["scales_scales"], q.parts["scales_offset"]
        table = dynamic_map().to(scales.device)
        scales = _times_scales(table[scales.long()], outer, SCALES_BLOCK) + offset
    values = torch.tensor(VALUES, device=scales.device)[q.codes.reshape(-1).long()]
    return _times_scales(values, scales, block).view(q.codes.shape)


def _quantise(values: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (N,) of the nearest entries, the lower of two as near; and amax of each block."""
    padded = F.pad(values, (0, -len(values) % block)).view(-1, block)
    scales = padded.abs().amax(1) if len(values) else values.new_zeros(0)
    scaled = (padded * (1.0 / scales.clamp(min=LEAST))[:, None]).clamp(-1, 1)
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2, out_int32=True)
    return codes.view(-1)[: len(values)].to(torch.uint8), scales


def _times_scales(values: Tensor, scales: Tensor, block: int) -> Tensor:
    padded = F.pad(values, (0, -len(values) % block)).view(-1, block)
    return (padded * scales[:, None]).view(-1)[: len(values)]


@cache
def dynamic_map() -> Tensor:
    """(256,) float32: the dynamic 8-bit map of arXiv 1511.04561, signed, seven exponent bits.

    Decade 10**-i has 2**(6-i) fractions, the middles of equal parts of 0.1 … 1; with 0 and 1.
    """
    entries = [0.0, 1.0]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (10 ** (decade - 6) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        entries += middles + [-value for value in middles]
    return torch.tensor(sorted(entries))


NF4 = register(
    Format(
        "nf4", 4, quantise, dequantise, block=BLOCK, options=("double", "block"), high_first=True
    )
)
