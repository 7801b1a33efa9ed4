"""E2M1, the 4-bit float of NVFP4 and MXFP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

The sign is bit 3, so that -0 has a code of its own, as in the hardware.
"""

import torch
from torch import Tensor

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MOST = 6.0


def encode(x: Tensor) -> Tensor:
    """uint8 codes of float32 values; to nearest, ties to the even code; beyond ±6 clamped."""
    # Codes count in halves up to 2, in ones up to 4, then in twos: the coarsest step that still
    # separates neighbours gives the least count. torch rounds ties to even, as codes are to be.
    magnitude = x.abs().clamp_(max=MOST)
    code = (2 * magnitude).round_()
    code = torch.minimum(code, magnitude.round().add_(2), out=code)
    code = torch.minimum(code, magnitude.div_(2).round_().add_(4), out=code)
    return code.to(torch.uint8) + (torch.signbit(x).to(torch.uint8) << 3)


def decode(codes: Tensor) -> Tensor:
    """float32 values."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)], device=codes.device)
    return table[codes.long()]
