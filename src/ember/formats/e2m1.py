"""E2M1, the 4-bit float of NVFP4 and MXFP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

The sign is bit 3, so that -0 has a code of its own, as in the hardware.
"""

import torch
from torch import Tensor

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MOST = 6.0


def encode(x: Tensor) -> Tensor:
    """uint8 codes of float32 values; to nearest, ties to the even code; beyond ±6 clamped."""
    magnitude = x.abs().clamp(max=MOST)
    values = torch.tensor(VALUES, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    # Between codes c and c + 1 a tie goes to the even one: down where c is even.
    code = torch.bucketize(magnitude, middles)
    tie = magnitude == middles[code.clamp(max=len(middles) - 1)]
    code = torch.where(tie & (code % 2 == 1), code + 1, code)
    return (code + 8 * torch.signbit(x)).to(torch.uint8)


def decode(codes: Tensor) -> Tensor:
    """float32 values."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)], device=codes.device)
    return table[codes.long()]
