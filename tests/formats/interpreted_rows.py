"""The kernels against the formats' own way, under Triton's interpreter."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from ember.formats import rows_kernel
from ember.formats.axes import Along
from ember.formats.base import FormatError
from ember.formats.registry import FORMATS
from ember.formats.rows_kernel import halves, quantise_blocks, quantise_rows

SHAPES = [(5, 64, None), (3, 96, 24), (70, 32, 16), (1, 8, 4), (2, 4100, None), (0, 8, 4)]
BITS = (2, 4, 8)
OFF = [0, -2, -1, 1, 2]  # units in the last place by which a device's inverses may be wrong


def _fma(builder, x, y, z):
    """Rounded once, as devices do; the interpreter's own rounds the product, too."""
    product = x.data.astype(np.float64) * y.data  # exact
    total = product + z.data
    there = total - product
    left = (product - (total - there)) + (z.data - there)  # what the sum left out
    even = total.view(np.int64) % 2 == 0
    toward = np.where(left > 0, np.inf, -np.inf)
    odd = np.where((left != 0) & even, np.nextafter(total, toward), total)
    return TensorHandle(odd.astype(np.float32), z.dtype.scalar)


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_fma", _fma)


def assert_equal(x: torch.Tensor, bits: int, group: int | None = None) -> None:
    format = FORMATS[f"int{bits}"]
    ours, theirs = quantise_rows(x, bits, group), format.pack(format.quantise(x, group=group))
    assert ours.shape == theirs.shape
    assert torch.equal(ours.data, theirs.data)
    assert torch.equal(ours.parts["scales"], theirs.parts["scales"])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size", "group"), SHAPES)
def test_equals_the_composition_of_operators(bits, dtype, rows, size, group):
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, size, generator=g) * 10 ** (4 * torch.rand(rows, 1, generator=g) - 2)
    x[1:2] = 0
    assert_equal(x.to(dtype), bits, group)


@pytest.mark.parametrize("bits", BITS)
def test_ties_and_scales_that_float16_bounds(bits):
    rows = [[3.5, -2.5, 1.5, 7.0], [63.5, -2.5, 0.5, 127.0], [1e9, -1e9, 3e5, 0.0]]
    rows += [[3e38, -4e5, 1e6, 9e6], [1e-45, -6e-45, 7e-45, 0.0], [1e-9, -1e-8, 0.0, 0.0]]
    assert_equal(torch.tensor(rows), bits)


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_narrow_number_in_many_scales(bits, dtype, off, monkeypatch):
    """All numbers of a dtype in groups of ever other greatest numbers, hence scales."""
    _in_large_programs(monkeypatch, off)
    bits_of = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = bits_of.view(dtype)
    x = x[x.isfinite()].sort(stable=True).values
    x = torch.cat([x, x.new_zeros(-len(x) % 32)])
    assert_equal(x[None], bits, 32)  # neighbours
    apart = x.view(32, -1).T.contiguous()
    assert_equal(apart, bits)  # all magnitudes
    top = 2.0 ** torch.arange(-12, 13).repeat_interleave(40)
    top = top * (1 + torch.arange(1000) % 997 / 997)  # 1000 scales
    near = (torch.arange(64) - 31.5) / 63  # ties, and their neighbours, of every step
    assert_equal((top[:, None] * near).to(dtype), bits)


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("bits", BITS)
def test_float32_at_the_ties_of_many_scales(bits, off, monkeypatch):
    _in_large_programs(monkeypatch, off)
    most = 2 ** (bits - 1) - 1
    g = torch.Generator().manual_seed(bits)
    scale = (2 ** (torch.rand(2000, 1, generator=g) * 28 - 13)).half().float()
    tie = scale * (torch.randint(-most, most, (2000, 61), generator=g) + 0.5)
    side = torch.tensor([-torch.inf, 0.0, torch.inf])[torch.randint(3, tie.shape, generator=g)]
    x = torch.where(side == 0, tie, torch.nextafter(tie, side))
    assert_equal(torch.cat([most * scale, x, scale / 3, -scale / 7], 1), bits)


def _in_large_programs(monkeypatch, off: int) -> None:
    """With inverses that are off. Each program takes the interpreter its time, and so does each
    step of a reduction that it does not know."""
    for values in ("_VALUES", "_OF_WARP"):
        monkeypatch.setattr(rows_kernel, values, 2**17)
    monkeypatch.setattr(rows_kernel, "_greater", tl.standard._elementwise_max)
    exact = InterpreterBuilder.create_fdiv

    def divided(builder, x, y):
        found = exact(builder, x, y)
        wrong = found.data.view(np.int32) + np.int32(off)
        return TensorHandle(wrong.view(np.float32), found.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", divided)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_of_every_narrow_number(dtype, monkeypatch):
    _in_large_programs(monkeypatch, 0)
    g = torch.Generator().manual_seed(1)
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
    # The interpreter takes bfloat16's subnormal numbers for others.
    x = torch.where(x.isfinite() & (x.abs() >= 2.0**-126), x, 0)
    x = torch.cat([x, x[torch.randperm(2**16, generator=g)], torch.randn(4096, generator=g)])
    x = x.to(dtype)
    assert_nf4(torch.where(x.isfinite(), x, 1))


def test_nf4_at_its_bounds(monkeypatch):
    _in_large_programs(monkeypatch, 0)
    bounds = torch.tensor(rows_kernel._BOUNDS.value)
    scales = torch.cat([2.0 ** torch.arange(-149, 128), torch.linspace(0.1, 9, 500)])[:, None]
    near = [torch.nextafter(bounds, torch.tensor(to)) for to in (-2.0, 2.0)]
    x = torch.cat([bounds, *near, torch.ones(1), torch.zeros(18)]) * scales
    assert_nf4(x)


def assert_nf4(x: torch.Tensor) -> None:
    format = FORMATS["nf4"]
    ours, theirs = quantise_blocks(x), format.pack(format.quantise(x))
    assert ours.shape == theirs.shape
    assert torch.equal(ours.parts["scales"], theirs.parts["scales"])
    assert torch.equal(ours.data, theirs.data)


def test_nf4_says_which_block_is_no_number():
    x = torch.zeros(3, 64)
    x[1, 5], x[2, 7] = float("nan"), -float("inf")
    assert quantise_blocks(x).parts["scales"].isnan().tolist() == [False, True, True]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_halves_are_those_of_the_raw_scheme(dtype):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = torch.cat([numbers.float(), torch.tensor([65519.0, 65520.0, 1e-8, 3e38])]).to(dtype)
    ours, theirs = halves(x.view(-1, 4, 1)), Along().pack(x.view(-1, 4, 1)).data
    assert torch.equal(ours.isnan().view(-1), x.isnan())
    there = ~x.isnan()
    assert torch.equal(ours.view(-1)[there], theirs.view(torch.float16)[there])
