"""Heads as pairs of dimensions that rotation turns, for kernels that rotate all that they read:
a thread has both dimensions of a pair, and may write where it reads (else `heads`)."""

import triton
import triton.language as tl


def head_pairs(dim: int) -> int:
    """Pairs of dimensions with which a program holds a head: a power of 2, 16 at the least, of
    which tensor cores take a product."""
    return max(16, triton.next_power_of_2(dim // 2))


@triton.jit
def pairs(D: tl.constexpr, ROTATED: tl.constexpr, PAIRS: tl.constexpr):
    """A head's dimensions in D / 2 pairs that rotation turns, first and second of each, (PAIRS,).

    Rotation leaves pairs beyond the first ROTATED / 2 as they are: tables say 1 and 0 for them.
    """
    pair = tl.arange(0, PAIRS)
    low, high = pair, pair + D // 2
    if ROTATED < D:
        turned = pair < ROTATED // 2
        low = tl.where(turned, pair, pair + ROTATED // 2)
        high = tl.where(turned, pair + ROTATED // 2, high)
    return low, high


@triton.jit
def within(mask, columns, END: tl.constexpr, POWER: tl.constexpr):
    """A mask of rows, and of the first END columns where there are more."""
    if END < POWER:
        mask = mask & (columns < END)
    return mask


@triton.jit
def load_within(places, columns, END: tl.constexpr, POWER: tl.constexpr):
    """What lies in the first END columns, and zeros beyond."""
    if END < POWER:
        found = tl.load(places, mask=columns < END, other=0.0)
    else:
        found = tl.load(places)
    return found
