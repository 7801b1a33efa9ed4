"""Symmetric integers of contiguous groups, quantised and packed in one pass over memory (Triton).

Contract. `quantise_rows` gives, bit for bit, what `int4` and `int8` give on the CPU for float16
scales, packed. Each value is read once and each byte written once; the composition of torch's
operators reads and writes float32 intermediates a dozen times. A group with NaN or infinity gets a
scale of NaN: looking for one makes the host wait for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember.formats.base import FormatError, Packed, finite

MOST_GROUP = 8192  # values: a program holds whole groups
_VALUES = 4096  # of a program with smaller groups
_LEAST = tl.constexpr(2.0**-14)  # float16's least normal number, and its greatest
_GREATEST = tl.constexpr(65504.0)
_TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 · 2**23: added and taken away, it rounds ties to even


@triton.jit
def _quantise(
    x_ptr,  # (groups, GROUP)
    codes_ptr,  # (groups, GROUP · BITS / 8) uint8
    scales_ptr,  # (groups,) float16
    groups,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,  # the power of two from GROUP on
    TAKEN: tl.constexpr,  # groups of a program
):
    group = tl.program_id(0).to(tl.int64) * TAKEN + tl.arange(0, TAKEN)
    place = tl.arange(0, WIDE)
    there = (group < groups)[:, None] & (place < GROUP)[None, :]
    at = group[:, None] * GROUP + place[None, :]
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    most = (1 << (BITS - 1)) - 1.0
    amax = tl.max(tl.abs(x), 1)
    scale = tl.div_rn(amax, tl.full((TAKEN,), most, tl.float32))
    scale = tl.where(scale > 0, tl.clamp(scale, _LEAST, _GREATEST), scale).to(tl.float16)
    # A maximum passes over NaN: the scale tells of it, as of infinity.
    strange = tl.max(tl.where(tl.abs(x) < float("inf"), 0, 1), 1)
    told = tl.where(strange > 0, float("nan"), scale.to(tl.float32)).to(tl.float16)
    tl.store(scales_ptr + group, told, mask=group < groups)
    wide = tl.where(scale > 0, scale.to(tl.float32), 1.0)
    steps = tl.div_rn(x, tl.broadcast_to(wide[:, None], (TAKEN, WIDE)))
    steps = tl.minimum(tl.maximum(steps, -most), most)
    codes = ((steps + _TO_WHOLE) - _TO_WHOLE + (most + 1)).to(tl.uint8)
    if BITS == 4:
        low, high = tl.split(tl.reshape(codes, (TAKEN, WIDE // 2, 2)))
        pair = tl.arange(0, WIDE // 2)
        at = group[:, None] * (GROUP // 2) + pair[None, :]
        there = (group < groups)[:, None] & (pair < GROUP // 2)[None, :]
        codes = low | (high << 4)
    tl.store(codes_ptr + at, codes, mask=there)


def serves(x: Tensor, bits: int, group: int) -> bool:
    """Whether `quantise_rows` takes these values: on CUDA, in groups that it can hold."""
    return x.is_cuda and bits in (4, 8) and group % 2 == 0 and 2 <= group <= MOST_GROUP


def quantise_rows(x: Tensor, bits: int, group: int | None = None, *, check: bool = True) -> Packed:
    """x (…, N) as int4 or int8; `group` neighbours (even; default: all N) share a scale.

    Raises FormatError for groups that it cannot hold, and with `check` for NaN and infinity.
    """
    group = x.shape[-1] if group is None else group
    if group % 2 or not 2 <= group <= MOST_GROUP or x.shape[-1] % group:
        raise FormatError(
            f"int{bits}: groups of {group} in rows of {x.shape[-1]}; they must divide the rows and "
            f"be even and at most {MOST_GROUP}, or be quantised without the kernel"
        )
    values = x.contiguous()
    groups = values.numel() // group
    codes = torch.empty(values.numel() * bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(groups, dtype=torch.float16, device=x.device)
    wide = triton.next_power_of_2(group)
    taken = max(1, _VALUES // wide)
    if groups:
        _quantise[(triton.cdiv(groups, taken),)](
            values, codes, scales, groups, BITS=bits, GROUP=group, WIDE=wide, TAKEN=taken
        )
    if check and not bool(torch.isfinite(scales).all()):
        finite(x, f"int{bits}")  # says how many values are not
    scales = scales.view(*x.shape[:-1], x.shape[-1] // group)
    return Packed(f"int{bits}", tuple(x.shape), codes, {"scales": scales})
