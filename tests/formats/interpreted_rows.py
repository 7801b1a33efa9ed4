"""The kernel against the formats' own way, under Triton's interpreter."""

import pytest
import torch

from ember.formats.base import FormatError
from ember.formats.registry import FORMATS
from ember.formats.rows_kernel import quantise_rows

SHAPES = [(5, 64, None), (3, 96, 24), (70, 32, 16), (1, 6, 2), (2, 4098, None), (0, 8, 4)]


def assert_equal(x: torch.Tensor, bits: int, group: int | None = None) -> None:
    format = FORMATS[f"int{bits}"]
    ours, theirs = quantise_rows(x, bits, group), format.pack(format.quantise(x, group=group))
    assert ours.shape == theirs.shape
    assert torch.equal(ours.data, theirs.data)
    assert torch.equal(ours.parts["scales"], theirs.parts["scales"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size", "group"), SHAPES)
def test_equals_the_composition_of_operators(bits, dtype, rows, size, group):
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, size, generator=g) * 10 ** (4 * torch.rand(rows, 1, generator=g) - 2)
    x[1:2] = 0
    assert_equal(x.to(dtype), bits, group)


@pytest.mark.parametrize("bits", [4, 8])
def test_ties_and_scales_that_float16_bounds(bits):
    rows = [[3.5, -2.5, 1.5, 7.0], [63.5, -2.5, 0.5, 127.0], [1e9, -1e9, 3e5, 0.0]]
    assert_equal(torch.tensor([*rows, [1e-9, -1e-8, 0.0, 0.0]]), bits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_no_number(bad):
    x = torch.zeros(4, 8)
    x[2, 3] = bad
    with pytest.raises(FormatError, match="1 of 32 values are NaN or infinite"):
        quantise_rows(x, 4)
    assert quantise_rows(x, 4, check=False).parts["scales"].isnan().tolist() == [
        [False],
        [False],
        [True],
        [False],
    ]
