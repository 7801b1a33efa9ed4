"""Properties that all number formats share, and what each refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.formats import codes, fp8, integer, nvfp4
from ember.formats.registry import FORMATS, FormatError, Packed, format_named

NAMES = sorted(FORMATS)


def values(seed: int, rows: int, blocks: int, spread: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 64 * blocks, generator=g)
    return x * 10 ** (spread * (torch.rand(rows, 1, generator=g) - 0.5))


def test_every_format_is_registered():
    assert set(NAMES) == {"int2", "int4", "int8", "fp8", "nf4", "nvfp4", "mxfp4"}
    assert format_named("nvfp4").bits == 4
    with pytest.raises(FormatError, match="Did you mean 'nvfp4'"):
        format_named("nvpf4")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.floats(0, 12))
def test_packing_changes_no_value(name, seed, rows, blocks, spread):
    format, x = FORMATS[name], values(seed, rows, blocks, spread)
    q = format.quantise(x)
    packed = format.pack(q)
    again = format.dequantise(format.unpack(packed))
    assert torch.equal(again, format.dequantise(q))
    assert again.shape == x.shape
    assert again.dtype == torch.float32
    assert packed.data.numel() == x.numel() * format.bits // 8
    assert packed.bytes == packed.data.numel() + sum(p.nbytes for p in packed.parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_quantised_values_are_a_fixed_point(name):
    format = FORMATS[name]
    once = format.dequantise(format.quantise(values(1, 4, 2, 2.0)))
    twice = format.dequantise(format.quantise(once))
    assert (twice - once).abs().max() <= 1e-3 * once.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -3.0, 1e4])
def test_constants(name, value):
    format = FORMATS[name]
    found = format.dequantise(format.quantise(torch.full((2, 64), value)))
    assert found.isfinite().all()
    if name != "mxfp4" and abs(value) != 1e-30:  # its largest value can lie a third off
        assert torch.allclose(found, torch.full((2, 64), value), rtol=2e-3)
    assert (found.abs() <= 1.4 * abs(value)).all()


@pytest.mark.parametrize(
    ("name", "bound"),
    [("int8", 0.01), ("fp8", 0.03), ("int4", 0.2), ("nf4", 0.11), ("nvfp4", 0.1), ("mxfp4", 0.16)],
)
def test_error_on_a_normal_distribution(name, bound):
    """Two-level scaling: 0.095 for NVFP4 (L-1.2)."""
    x = 0.02 * torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    options = {"group": 128} if "group" in FORMATS[name].options else {}
    found = FORMATS[name].dequantise(FORMATS[name].quantise(x, **options))
    assert ((found - x).norm() / x.norm()) < bound


def test_two_levels_of_scales_are_needed():
    x = 0.02 * torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    both = nvfp4.dequantise(nvfp4.quantise(x))
    alone = nvfp4.dequantise(nvfp4.quantise(x, scale=torch.tensor(1.0)))
    assert (both - x).norm() / x.norm() == pytest.approx(0.095, abs=0.002)
    assert (alone - x).norm() / x.norm() == pytest.approx(0.131, abs=0.003)


def test_headroom_leaves_room_for_growth():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    scale = nvfp4.tensor_scale(x, headroom=1.5)
    grown = nvfp4.dequantise(nvfp4.quantise(1.4 * x, scale=scale))
    held = nvfp4.dequantise(nvfp4.quantise(1.4 * x, scale=nvfp4.tensor_scale(x)))
    largest = (1.4 * x).abs().argmax()
    wanted = (1.4 * x).view(-1)[largest]
    assert (grown.view(-1)[largest] - wanted).abs() < 0.1 * wanted.abs()
    assert held.abs().max() < 0.8 * wanted.abs()
    with pytest.raises(FormatError, match=r"headroom is 0\.5"):
        nvfp4.tensor_scale(x, headroom=0.5)


def test_a_cast_to_e4m3_saturates():
    x = torch.tensor([1e9, -1e9, 448.0, 464.0, 0.0])
    assert fp8.e4m3(x).float().tolist() == [448.0, -448.0, 448.0, 448.0, 0.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 16, 32]))
def test_an_integer_is_off_by_half_a_step_at_most(bits, seed, symmetric, group):
    x = values(seed, 3, 1, 2.0)
    q = integer.quantise(x, bits=bits, symmetric=symmetric, group=group, scale_dtype=torch.float32)
    steps = q.parts["scales"].repeat_interleave(group or 64, -1)
    error = (integer.dequantise(q, bits=bits) - x).abs()
    assert (error <= 0.5001 * steps + 1e-6 * x.abs().amax()).all()


def test_asymmetric_integers_hold_values_far_from_zero():
    x = 100 + torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    found = FORMATS["int4"].dequantise(FORMATS["int4"].quantise(x, symmetric=False))
    assert (found - x).abs().max() < 0.08  # offsets are half precision: 100.03 … 0.0625 apart


def test_stochastic_rounding_is_right_in_the_mean():
    x = torch.tensor([[0.3, 1.0, -0.7, 0.05]]).repeat(20000, 1)
    g = torch.Generator().manual_seed(0)
    q = integer.quantise(x, bits=4, generator=g, scale_dtype=torch.float32)
    mean = integer.dequantise(q, bits=4).mean(0)
    assert torch.allclose(mean, x[0], atol=0.003)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_no_number(name, bad):
    x = torch.zeros(2, 64)
    x[1, 3] = bad
    with pytest.raises(FormatError, match=f"{name}: 1 of 128 values are NaN or infinite"):
        FORMATS[name].quantise(x)
    with pytest.raises(FormatError, match="quantise floating-point values"):
        FORMATS[name].quantise(torch.zeros(2, 64, dtype=torch.int32))


@pytest.mark.parametrize(("name", "size"), [("nvfp4", 24), ("mxfp4", 48)])
def test_refuses_a_shape_that_no_block_divides(name, size):
    with pytest.raises(FormatError, match="no multiple of"):
        FORMATS[name].quantise(torch.zeros(2, size))
    with pytest.raises(FormatError, match="no multiple of 24"):
        FORMATS["int4"].quantise(torch.zeros(2, 64), group=24)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_packed_data_that_was_cut_off(name):
    format = FORMATS[name]
    packed = format.pack(format.quantise(torch.zeros(2, 64)))
    short = Packed(packed.format, packed.shape, packed.data[:-1], packed.parts)
    with pytest.raises(FormatError, match="cut off"):
        format.unpack(short)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.lists(st.integers(0, 255), max_size=40))
def test_codes_survive_packing(bits, high_first, drawn):
    given_codes = torch.tensor([code % 2**bits for code in drawn], dtype=torch.uint8)
    data = codes.pack_codes(given_codes, bits, high_first=high_first)
    assert len(data) == -(-len(drawn) * bits // 8)
    again = codes.unpack_codes(data, bits, len(drawn), high_first=high_first)
    assert torch.equal(again, given_codes)


def test_the_first_of_two_nibbles():
    two = torch.tensor([0x1, 0xF], dtype=torch.uint8)
    assert codes.pack_codes(two, 4).tolist() == [0xF1]
    assert codes.pack_codes(two, 4, high_first=True).tolist() == [0x1F]
