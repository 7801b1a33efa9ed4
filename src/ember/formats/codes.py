"""Codes of 1 to 8 bits side by side in bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_codes(codes: Tensor, bits: int, *, high_first: bool = False) -> Tensor:
    """(bytes,) uint8 of uint8 codes below 2**bits, in order; zeros fill the last byte.

    The first code of a byte takes its low bits, or with `high_first` its high ones. `bits` is 1, 2,
    4 or 8.
    """
    flat, each = codes.reshape(-1), 8 // bits
    if each == 1:
        return flat
    flat = F.pad(flat, (0, -len(flat) % each)).view(-1, each)
    packed = torch.zeros(len(flat), dtype=torch.uint8, device=codes.device)
    for place, shift in enumerate(_shifts(bits, high_first)):
        packed |= flat[:, place] << shift
    return packed


def unpack_codes(data: Tensor, bits: int, count: int, *, high_first: bool = False) -> Tensor:
    """(count,) uint8 codes, the inverse of `pack_codes`."""
    if bits == 8:
        return data[:count]
    mask = (1 << bits) - 1
    codes = [(data >> shift) & mask for shift in _shifts(bits, high_first)]
    return torch.stack(codes, 1).view(-1)[:count]


def _shifts(bits: int, high_first: bool) -> list[int]:
    shifts = list(range(0, 8, bits))
    return shifts[::-1] if high_first else shifts
