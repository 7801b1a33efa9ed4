"""Matrices as the compiled step reads them: dense, or 4-bit codes that become floats in registers.

`packed.c` is included by `native_step.c`. Sums are of float32 products of the very weights that
`PackedMatrix.dense` gives, but that a scale of the whole tensor is applied to the sum.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from ember.backends.packing import Weight
from ember.model.packed import values_of

GROUP = 32  # the planes of x are filled up to a multiple of it
POINTER = ctypes.c_void_p


class Matrix(ctypes.Structure):
    """`Matrix` of packed.c. Whatever it points to must live as long."""

    NAMES = ("dense", "codes", "scales", "overall", "table")
    _fields_ = (
        *((name, POINTER) for name in NAMES),
        ("ends", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("shift", "e4m3", "high_first")),
    )

    @classmethod
    def of(cls, weight: Weight) -> "Matrix":
        """A weight's, of either kind."""
        if isinstance(weight, Tensor):
            return cls(weight.data_ptr())
        if weight.order != "file":
            raise ValueError("codes are laid for CUDA's kernels: PackedMatrix.lay puts them back")
        tensors = (weight.codes, weight.scales, weight.overall, _table(weight.format))
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        ends = (*weight.ends, *[len(weight)] * (3 - len(weight.ends)))
        return cls(
            *(None, *addresses, (ctypes.c_int64 * 3)(*ends), weight.block.bit_length() - 1),
            *(weight.scales.dtype == torch.uint8, weight.high_first),
        )


@cache
def _table(format: str) -> Tensor:
    return values_of(format)
