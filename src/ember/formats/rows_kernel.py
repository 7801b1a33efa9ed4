"""Values quantised and packed, or halved, in one pass over memory (Triton).

Contract. `quantise_rows` gives, bit for bit, what `int2`, `int4` and `int8` give on the CPU for
float16 scales, packed; `quantise_blocks` what `nf4` gives; `halves` gives float16. Each value is
read once and each byte written once; the composition of torch's operators reads and writes float32
intermediates a dozen times. A group with NaN or infinity gets a scale of NaN: looking for one makes
the host wait for the device.

Quotients. To be as fast as memory, a value can have some ten instructions, as many as one division
takes. So the inverse of a scale is kept as a sum of two float32, good to 2**-44 even where
the device's own is two units off in its last place: x · first + x · rest, the sum rounded once, is
x / scale correctly rounded, which for x of 24 bits and a scale of 11 is 2**-36 or more from where
rounding turns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember.formats.base import FormatError, Packed, finite
from ember.formats.nf4 import BLOCK, LEAST, VALUES

MOST_GROUP = 8192  # values: a program holds whole groups
_VALUES, _WARPS = 4096, 4  # of a program of NF4 or float16
_OF_WARP = 1024  # values, int2, int4 and int8: groups that warps share take ten times as long
_LEAST = tl.constexpr(2.0**-14)  # float16's least normal number, and its greatest
_GREATEST = tl.constexpr(65504.0)
_TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 · 2**23: what is added to it ends in its low bits, whole
_NF4 = torch.tensor(VALUES)
_BOUNDS = tl.constexpr(tuple(((_NF4[1:] + _NF4[:-1]) / 2).tolist()))  # between codes
_DIVISOR = tl.constexpr(LEAST)  # of a block of zeros


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _inverse(divisor):
    """1 / divisor as a sum of two."""
    first = 1.0 / divisor
    return first, tl.fma(-first, divisor, 1.0) * first


@triton.jit
def _quantise(
    x_ptr,  # (groups, GROUP)
    codes_ptr,  # (groups, GROUP · BITS / 8) uint8
    scales_ptr,  # (groups,) float16
    groups,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,  # of a group; first, so that a warp has whole groups
    LINE: tl.constexpr,  # values
    TAKEN: tl.constexpr,  # groups of a program
):
    MOST: tl.constexpr = (1 << (BITS - 1)) - 1
    EACH: tl.constexpr = 8 // BITS
    group = tl.program_id(0).to(tl.int64) * TAKEN + tl.arange(0, TAKEN)
    inside, group_of = group < groups, group[None, :, None]
    place = (tl.arange(0, LINES) * LINE)[:, None, None] + tl.arange(0, LINE)[None, None, :]
    there = inside[None, :, None] & (place < GROUP)
    x = tl.load(x_ptr + group_of * GROUP + place, mask=there, other=0.0).to(tl.float32)
    amax = tl.reduce(tl.reduce(tl.abs(x), 0, _greater), 1, _greater)
    first, rest = _inverse(tl.full((TAKEN,), MOST, tl.float32))
    scale = tl.fma(amax, first, amax * rest)
    scale = tl.where(scale > 0, tl.clamp(scale, _LEAST, _GREATEST), scale).to(tl.float16)
    told = tl.where(amax < float("inf"), scale.to(tl.float32), float("nan")).to(tl.float16)
    tl.store(scales_ptr + group, told, mask=inside)
    first, rest = _inverse(tl.where(scale > 0, scale.to(tl.float32), 1.0))
    # Only under the greatest scale do codes pass `MOST`; this far away they are it.
    x = tl.clamp(x, -65536.0 * MOST, 65536.0 * MOST)
    first = tl.broadcast_to(first[None, :, None], (LINES, TAKEN, LINE))
    steps = tl.fma(x, first, x * rest[None, :, None])
    codes = (steps + (_TO_WHOLE + MOST + 1)).to(tl.int32, bitcast=True)
    if BITS == 2:
        low, high = tl.split(tl.reshape(codes, (LINES, TAKEN, LINE // 2, 2)))
        codes = low + (high << 2)
    if BITS < 8:
        low, high = tl.split(tl.reshape(codes, (LINES, TAKEN, LINE * BITS // 8, 2)))
        codes = low + (high << 4)
    place = (tl.arange(0, LINES) * (LINE // EACH))[:, None, None]
    place += tl.arange(0, LINE // EACH)[None, None, :]
    there = inside[None, :, None] & (place < GROUP // EACH)
    tl.store(codes_ptr + group_of * (GROUP // EACH) + place, codes.to(tl.uint8), mask=there)


def serves(x: Tensor, bits: int, group: int) -> bool:
    """Whether `quantise_rows` takes these values: on CUDA, in groups that it can hold."""
    return x.is_cuda and _fits(bits, group)


def _fits(bits: int, group: int) -> bool:
    return bits in (2, 4, 8) and group * bits % 8 == 0 and 2 <= group <= MOST_GROUP


def quantise_rows(x: Tensor, bits: int, group: int | None = None, *, check: bool = True) -> Packed:
    """x (…, N) as int2, int4 or int8; `group` neighbours, whose codes fill whole bytes, share a
    scale (default: all N).

    Raises FormatError for groups that it cannot hold, and with `check` for NaN and infinity.
    """
    group = x.shape[-1] if group is None else group
    if not _fits(bits, group) or x.shape[-1] % group:
        raise FormatError(
            f"int{bits}: groups of {group} in rows of {x.shape[-1]}; they must divide the rows, "
            f"fill whole bytes and be at most {MOST_GROUP}, or be quantised without the kernel"
        )
    values = x.contiguous()
    groups = values.numel() // group
    codes = torch.empty(values.numel() * bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(groups, dtype=torch.float16, device=x.device)
    if groups:
        wide = 1 << (group - 1).bit_length()
        line = min(wide, 512 if bits == 8 else 256)  # what a warp reads and writes in long words
        taken, warps = max(1, _OF_WARP // wide), max(1, wide // (2 * _OF_WARP))
        cut = {"BITS": bits, "GROUP": group, "LINES": wide // line, "LINE": line, "TAKEN": taken}
        _quantise[(-(-groups // taken),)](values, codes, scales, groups, **cut, num_warps=warps)
    if check and not bool(torch.isfinite(scales).all()):
        finite(x, f"int{bits}")  # says how many values are not
    scales = scales.view(*x.shape[:-1], x.shape[-1] // group)
    return Packed(f"int{bits}", tuple(x.shape), codes, {"scales": scales})


@triton.jit
def _quantise_nf4(
    x_ptr,  # (blocks, BLOCK)
    codes_ptr,  # (blocks, BLOCK / 2) uint8
    scales_ptr,  # (blocks,) float32
    blocks,
    BLOCK: tl.constexpr,
    TAKEN: tl.constexpr,  # blocks of a program
):
    block = tl.program_id(0).to(tl.int64) * TAKEN + tl.arange(0, TAKEN)
    inside, block_of = (block < blocks)[:, None], block[:, None]
    at = block_of * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    amax = tl.reduce(tl.abs(x), 1, _greater)
    told = tl.where(amax < float("inf"), amax, float("nan"))
    tl.store(scales_ptr + block, told, mask=block < blocks)
    divisor = tl.maximum(amax, tl.full((TAKEN,), _DIVISOR, tl.float32))
    x *= tl.div_rn(tl.full((TAKEN,), 1.0, tl.float32), divisor)[:, None]
    codes = tl.zeros((TAKEN, BLOCK), tl.int32)
    for n in tl.static_range(15):
        codes += (x > _BOUNDS[n]).to(tl.int32)
    high, low = tl.split(tl.reshape(codes, (TAKEN, BLOCK // 2, 2)))
    at = block_of * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(codes_ptr + at, ((high << 4) + low).to(tl.uint8), mask=inside)


def quantise_blocks(x: Tensor) -> Packed:
    """x (any shape of whole blocks of 64) as NF4; a block that is not finite has a scale of NaN."""
    values, blocks = x.contiguous(), x.numel() // BLOCK
    codes = torch.empty(values.numel() // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(blocks, dtype=torch.float32, device=x.device)
    taken = _VALUES // BLOCK
    if blocks:
        _quantise_nf4[(-(-blocks // taken),)](
            values, codes, scales, blocks, BLOCK=BLOCK, TAKEN=taken, num_warps=_WARPS
        )
    return Packed("nf4", tuple(x.shape), codes, {"scales": scales})


@triton.jit
def _halve(x_ptr, halves_ptr, count, TAKEN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TAKEN + tl.arange(0, TAKEN)
    x = tl.load(x_ptr + at, mask=at < count).to(tl.float32)
    x = tl.where(tl.abs(x) < float("inf"), tl.clamp(x, -_GREATEST, _GREATEST), x)
    tl.store(halves_ptr + at, x.to(tl.float16), mask=at < count)


def halves(x: Tensor) -> Tensor:
    """x in float16; a number beyond float16's greatest is taken for it, infinity stays."""
    values = x.contiguous()
    found = torch.empty_like(values, dtype=torch.float16)
    count = values.numel()
    if count:
        _halve[(-(-count // _VALUES),)](values, found, count, TAKEN=_VALUES, num_warps=_WARPS)
    return found
