"""Swizzled scales: whatever lies how in memory, the way there and back changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ember.formats.base import FormatError
from ember.formats.scale_layout import from_blocked, to_blocked


def drawn(rows, columns):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randint(256, (rows, columns), generator=generator, dtype=torch.uint8)


@given(rows=st.integers(1, 300), columns=st.integers(1, 20), kind=st.sampled_from("csto"))
def test_there_and_back_from_any_strides(rows, columns, kind):
    scales = {
        "c": drawn(rows, columns),
        "s": drawn(rows, 2 * columns)[:, ::2],
        "t": drawn(columns, rows).T,
        "o": drawn(rows + 3, columns + 2)[3:, 1:-1],
    }[kind]
    blocked = to_blocked(scales)
    assert torch.equal(from_blocked(blocked, rows, columns), scales)
    apart = torch.stack([blocked, blocked], 1)[:, 0]  # strided on the way back, too
    assert torch.equal(from_blocked(apart, rows, columns), scales)
    for row, column in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)}:
        tile = (row // 128) * -(-columns // 4) + column // 4
        at = tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4
        assert blocked[at] == scales[row, column]


def test_scales_in_e4m3_are_moved_by_their_bits():
    scales = drawn(130, 5) & 0x7E
    found = to_blocked(scales.view(torch.float8_e4m3fn))
    assert torch.equal(found.view(torch.uint8), to_blocked(scales))


def test_other_shapes_are_refused():
    with pytest.raises(FormatError, match="no matrix"):
        to_blocked(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(FormatError, match="another shape"):
        from_blocked(torch.zeros(511, dtype=torch.uint8), 3, 4)
