"""The order in which FP4 matrix units read block scales: tiles of 128 rows by 4 columns.

Scale (r, c) of a matrix with C columns lies at
((r // 128) · ⌈C / 4⌉ + c // 4) · 512 + (r % 32) · 16 + ((r % 128) // 32) · 4 + c % 4;
rows are filled up to a multiple of 128 and columns to one of 4, with zeros.
"""

import torch.nn.functional as F
from torch import Tensor

from ember.formats.base import FormatError

ROWS, COLUMNS = 128, 4


def to_blocked(scales: Tensor) -> Tensor:
    """(⌈R/128⌉ · ⌈C/4⌉ · 512,) of scales (R, C) of one byte each, strided or not."""
    if scales.dim() != 2:
        raise FormatError(f"scales {tuple(scales.shape)} are no matrix; give (rows, blocks)")
    rows, columns = scales.shape
    padded = F.pad(scales, (0, -columns % COLUMNS, 0, -rows % ROWS))
    tiles = padded.reshape(-(-rows // ROWS), 4, 32, -(-columns // COLUMNS), COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def from_blocked(blocked: Tensor, rows: int, columns: int) -> Tensor:
    """Scales (rows, columns), the inverse of `to_blocked`."""
    down, across = -(-rows // ROWS), -(-columns // COLUMNS)
    if blocked.numel() != down * across * ROWS * COLUMNS:
        raise FormatError(
            f"{blocked.numel()} bytes of scales for {rows} x {columns}, which take "
            f"{down * across * ROWS * COLUMNS} in tiles; they are of another shape or layout"
        )
    tiles = blocked.reshape(down, across, 32, 4, COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(down * ROWS, across * COLUMNS)[:rows, :columns]
