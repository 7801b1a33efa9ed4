"""Codes, scales and values of the block formats equal those of bitsandbytes and torchao."""

import pytest
import torch

from ember.formats import nf4, nvfp4
from ember.formats.registry import FORMATS, Packed
from ember.formats.scale_layout import from_blocked, to_blocked


def draws(shape):
    """Tensors of many kinds: names and values."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=g)
    return {
        "normal": normal,
        "small": 0.02 * normal,
        "zeros": torch.zeros(shape),
        "some zero blocks": normal * (torch.arange(normal.numel()).view(shape) // 64 % 2),
        "denormals": normal * 1e-40,
        "huge": normal * 1e37,
        "mixed": normal * 10 ** torch.randint(-20, 20, shape, generator=g).float(),
        "ties": (torch.arange(normal.numel()).view(shape) % 49 - 24) / 4.0,
        "one": torch.zeros(shape).index_fill_(0, torch.tensor([0]), 1.0),
        "negative zero": -torch.zeros(shape),
    }


SHAPES = [(1, 64), (3, 128), (16, 256), (40, 32)]
CASES = [(shape, name) for shape in SHAPES for name in draws((1, 64))]


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "name"), CASES)
def test_nf4_equals_bitsandbytes(shape, name, dtype, bitsandbytes):
    x = draws(shape)[name].to(dtype)
    data, state = bitsandbytes.quantize_4bit(x, blocksize=64, quant_type="nf4")
    ours = nf4.quantise(x)
    assert torch.equal(FORMATS["nf4"].pack(ours).data, data.view(-1))
    assert torch.equal(ours.parts["scales"], state.absmax)
    # Its CPU kernel takes wrong scales where blocks go across rows, and flushes denormals.
    if shape[-1] % 64 == 0 and name != "denormals":
        theirs = bitsandbytes.dequantize_4bit(data, state)
        assert torch.equal(nf4.dequantise(ours).to(dtype), theirs)


@pytest.mark.parametrize("size", [1, 63, 65, 1000])
def test_nf4_ends_with_a_shorter_block(size, bitsandbytes):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    data, state = bitsandbytes.quantize_4bit(x, blocksize=64, quant_type="nf4")
    ours = nf4.quantise(x)
    packed = Packed("nf4", (size,), data.view(-1), {"scales": state.absmax})
    assert torch.equal(FORMATS["nf4"].unpack(packed).codes, ours.codes)
    assert torch.equal(ours.parts["scales"], state.absmax)


@pytest.mark.parametrize("name", ["normal", "small", "some zero blocks"])
@pytest.mark.parametrize("shape", [(16, 256), (300, 128)])
def test_nf4_with_quantised_scales_equals_bitsandbytes(shape, name, bitsandbytes):
    x = draws(shape)[name]
    data, state = bitsandbytes.quantize_4bit(
        x, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    ours = nf4.quantise(x, double=True)
    parts = {
        "scales": state.absmax,
        "scales_scales": state.state2.absmax,
        "scales_offset": state.offset.reshape(1),
    }
    assert torch.equal(FORMATS["nf4"].pack(ours).data, data.view(-1))
    for part in ("scales_scales", "scales_offset"):
        assert torch.equal(ours.parts[part], parts[part])
    # Its CPU kernel looks small scales up in a coarse table; see the nearest code below.
    assert (ours.parts["scales"] == parts["scales"]).float().mean() > 0.98
    theirs = nf4.dequantise(FORMATS["nf4"].unpack(Packed("nf4", shape, data.view(-1), parts)))
    assert torch.equal(theirs, bitsandbytes.dequantize_4bit(data, state))


def test_quantised_scales_take_the_nearest_code():
    scales = torch.rand(1000, generator=torch.Generator().manual_seed(2)) ** 8
    x = (torch.ones(1000, 64) * scales[:, None]).flatten()
    ours = nf4.quantise(x, double=True)
    offset, outer = ours.parts["scales_offset"], ours.parts["scales_scales"]
    outer = outer.repeat_interleave(256)[:1000].double()
    table = nf4.dynamic_map().double()
    error = (table[:, None] * outer - (scales - offset).double()).abs()
    chosen = error.gather(0, ours.parts["scales"].long()[None])[0]
    assert (chosen <= error.amin(0) * (1 + 1e-5)).all()


def test_the_dynamic_map_is_bitsandbytes(bitsandbytes):
    assert torch.equal(nf4.dynamic_map(), bitsandbytes.create_dynamic_map())


@pytest.fixture(scope="module")
def torchao():
    return pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "name"), CASES)
def test_nvfp4_equals_torchao(shape, name, dtype, torchao):
    x = draws(shape)[name].to(dtype)
    scale = nvfp4.tensor_scale(x)
    scales, data = torchao.nvfp4_quantize(x, 16, scale)
    ours = nvfp4.quantise(x)
    assert torch.equal(ours.parts["scales"], scales.view(torch.uint8))
    packed = FORMATS["nvfp4"].pack(ours).data
    assert torch.equal(packed, data.reshape(-1))
    tensor = torchao.NVFP4Tensor(
        data, scales.view(*x.shape[:-1], -1), 16, dtype, per_tensor_scale=scale
    )
    theirs = tensor.dequantize(torch.float32)
    assert torch.equal(nvfp4.dequantise(ours), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "name"), CASES)
def test_mxfp4_equals_torchao(shape, name, dtype):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    x = draws(shape)[name].to(dtype)
    scales, data = mx.to_mx(x, torch.float4_e2m1fn_x2, 32)
    ours = FORMATS["mxfp4"].quantise(x)
    assert torch.equal(ours.parts["scales"].view(-1), scales.view(torch.uint8).view(-1))
    assert torch.equal(FORMATS["mxfp4"].pack(ours).data, data.reshape(-1))
    tensor = mx.MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32)
    assert torch.equal(FORMATS["mxfp4"].dequantise(ours), tensor.dequantize(torch.float32))


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (300, 17), (64, 160)])
def test_scales_in_tiles_equal_torchao(shape):
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()
    blocked = to_blocked(scales)
    assert torch.equal(blocked, utils.to_blocked(scales).view(-1))
    assert torch.equal(from_blocked(blocked, *shape), scales)
    strided = scales.t().contiguous().t()
    assert not strided.is_contiguous() or 1 in shape
    assert torch.equal(to_blocked(strided), blocked)
    rows, columns = shape
    for r, c in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)):
        place = ((r // 128) * -(-columns // 4) + c // 4) * 512
        place += (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4
        assert blocked[place] == scales[r, c]
