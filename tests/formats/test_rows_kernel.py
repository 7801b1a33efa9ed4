"""The kernel that quantises and packs in one pass, and what it refuses."""

import pytest
import torch

from ember.formats.base import FormatError


@pytest.mark.parametrize("interpreted", ["interpreted_rows.py"], indirect=True)
def test_equals_the_formats_bit_for_bit(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout


@pytest.mark.parametrize(("size", "group"), [(9, 3), (16, 6), (16384, None)])
def test_refuses_groups_that_it_cannot_hold(size, group):
    kernel = pytest.importorskip("ember.formats.rows_kernel")
    assert not kernel.serves(torch.zeros(2, size), 4, group or size)
    with pytest.raises(FormatError, match="without the kernel"):
        kernel.quantise_rows(torch.zeros(2, size), 4, group)
