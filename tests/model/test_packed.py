"""4-bit linear layers: what they keep, what they compute, and how files of them are read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.formats.base import FormatError
from ember.formats.registry import FORMATS
from ember.measure.live import live_tensors
from ember.model.linear import dense_weight, is_linear, packed_matrix, weight_format
from ember.model.packed import (
    PACKED,
    LinearNF4,
    LinearNVFP4,
    PackedLinear,
    densify,
    kernel_order,
    lay,
    quantise_decoder,
    unlay,
)
from tests.tiny import draw, wild

FORMATS_4 = sorted(PACKED)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "head_dim": 16}


def drawn(rows, columns, seed=0, scale=0.02):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMATS_4)
@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), blocks=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_layer_keeps_the_values_of_its_format_bit_for_bit(name, rows, blocks, seed):
    weight = drawn(rows, 64 * blocks, seed) * 10.0 ** (seed % 20 - 10)
    layer = PACKED[name].of(weight)
    expected = FORMATS[name].dequantise(FORMATS[name].quantise(weight, **layer.options))
    assert torch.equal(layer.matrix.dense(), expected)
    assert torch.equal(FORMATS[name].dequantise(layer.quantised()), expected)


def test_packing_in_pieces_changes_nothing_and_holds_little_beside_the_weight(monkeypatch):
    weight = drawn(512, 256) * torch.linspace(0.1, 9, 512)[:, None]
    whole = LinearNVFP4.of(weight)
    monkeypatch.setattr("ember.model.packed.AT_ONCE", 2**12)
    with live_tensors([weight]) as live:
        pieces = LinearNVFP4.of(weight)
    for name, buffer in whole.named_buffers():
        assert torch.equal(pieces.get_buffer(name), buffer)
    assert live.peak_bytes < weight.nbytes  # a float32 copy alone would be as much


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), words=st.integers(1, 5), seed=st.integers(0, 99))
def test_codes_laid_for_kernels_come_back(rows, words, seed):
    generator = torch.Generator().manual_seed(seed)
    for order, shape in (("words", (rows, 4 * words)), ("tiles", (8 * rows, 64 * words))):
        codes = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        assert torch.equal(unlay(lay(codes, order), order), codes)
        assert torch.equal(lay(unlay(codes, order), order), codes)


def test_what_kernels_read_at_once_lies_together():
    codes = torch.arange(16 * 128).view(16, 128).to(torch.uint8)
    words, tiles = (lay(codes, order).view(torch.int32) for order in ("words", "tiles"))
    together = [words[:8, :16], words[:8, 16:], words[8:, :16], words[8:, 16:]]
    assert torch.equal(tiles.flatten(), torch.cat([tile.flatten() for tile in together]))
    assert kernel_order(256, (8, 24)) == "tiles"
    assert {kernel_order(192, (8,)), kernel_order(256, (8, 12))} == {"words"}
    for some, order in ((codes[:12], "tiles"), (codes[:, :96], "tiles"), (codes, "rows")):
        with pytest.raises(ValueError, match=f"cannot lie as '{order}'"):
            lay(some, order)


@pytest.mark.parametrize("order", ["words", "tiles"])
def test_a_laid_layer_is_the_same_to_all_who_ask(order, monkeypatch):
    monkeypatch.setattr("ember.model.packed.AT_ONCE", 1500)  # in more than one piece
    layer = LinearNVFP4.of(drawn(24, 128))
    codes, weight, x = layer.qdata.clone(), layer.matrix.dense(), drawn(2, 128, seed=1)
    out, quantised, place = layer(x), layer.quantised(), layer.qdata.data_ptr()
    layer.lay(order)
    assert torch.equal(layer.qdata, lay(codes, order))
    assert layer.qdata.data_ptr() == place
    assert not torch.equal(layer.qdata, codes)
    assert torch.equal(layer.matrix.dense(), weight)
    assert torch.equal(next(layer.matrix.split(8)).dense(), weight[:8])
    assert torch.equal(layer(x), out)
    assert torch.equal(layer.quantised().codes, quantised.codes)
    assert torch.equal(layer.state_dict()["qdata"], codes)
    layer.load_state_dict(layer.state_dict())
    assert layer.order == "file"
    assert torch.equal(layer.qdata, codes)
    nf4 = PACKED["nf4"].of(drawn(24, 128))
    nf4.lay(order)
    assert nf4.order == "file", "these have one order only"


@pytest.mark.parametrize("name", FORMATS_4)
def test_a_layer_multiplies_by_the_dequantised_weight(name):
    layer = PACKED[name].of(drawn(24, 128), drawn(1, 24)[0])
    x = drawn(5, 128, seed=1, scale=1.0)
    exact = x.double() @ layer.matrix.dense().double().T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-6, rtol=1e-5)
    half = layer.to(torch.bfloat16)(x.bfloat16())
    torch.testing.assert_close(half.double(), exact, atol=0.02, rtol=0.02)
    assert weight_format(layer) == name
    assert is_linear(layer)
    with pytest.raises(TypeError, match=name):
        dense_weight(layer)
    with pytest.raises(TypeError, match="not packed"):
        packed_matrix(torch.nn.Linear(4, 3), order="file")


@pytest.mark.parametrize("piece", [1, 64 * 5, 64 * 24])
def test_a_large_weight_is_multiplied_by_in_pieces(monkeypatch, piece):
    layer = LinearNVFP4.of(drawn(24, 64), torch.arange(24.0))
    x = drawn(3, 64, seed=1)
    whole = layer(x)
    monkeypatch.setattr("ember.model.packed.PIECE", piece)
    torch.testing.assert_close(layer(x), whole)
    layer.bias = None
    torch.testing.assert_close(layer(x), whole - torch.arange(24.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS_4)
def test_another_type_of_activations_changes_no_scale(name):
    layer = PACKED[name].of(drawn(8, 64))
    before = layer.matrix.dense()
    layer.to(torch.bfloat16).to(torch.float16)
    assert torch.equal(layer.matrix.dense(), before)


@pytest.mark.parametrize("name", FORMATS_4)
@pytest.mark.parametrize("value", [0.0, 1e-40, 3e38])
def test_zeros_denormals_and_huge_weights_stay_finite(name, value):
    weight = torch.full((4, 64), value)
    dense = PACKED[name].of(weight).matrix.dense()
    assert torch.isfinite(dense).all()
    if value != 1e-40:
        torch.testing.assert_close(dense, weight, rtol=0.01, atol=0)


def test_codes_and_scales_stand_in_the_state_dict_under_either_name():
    layer = LinearNVFP4.of(drawn(8, 64))
    state = layer.state_dict()
    assert set(state) == {"qdata", "scale", "tensor_scale"}
    other = LinearNVFP4(64, 8)
    other.load_state_dict({f"weight.{name}": tensor for name, tensor in state.items()})
    assert torch.equal(other.matrix.dense(), layer.matrix.dense())
    as_e4m3 = state | {"scale": state["scale"].view(torch.float8_e4m3fn)}
    del as_e4m3["tensor_scale"]  # as the earlier system wrote it: blocks alone
    other.load_state_dict(as_e4m3)
    assert torch.equal(other.scale, layer.scale)
    assert other.tensor_scale == 1


def test_scales_of_another_format_are_refused():
    with pytest.raises(FormatError, match="scales of nf4 are"):
        LinearNF4(64, 8).load_state_dict(LinearNVFP4.of(drawn(8, 64)).state_dict())


@pytest.mark.parametrize("name", FORMATS_4)
def test_layers_are_made_dense_with_the_values_they_had(name):
    decoder, tokens = wild("qwen3", qkv_bias=True, **SIZES), draw(2, 7)
    quantise_decoder(decoder, name, skip=())
    expected = decoder.logits(decoder(tokens))
    densify(decoder, ["lm_head"])
    assert weight_format(decoder.lm_head) == "dense"
    assert weight_format(decoder.layers[0].self_attn.q_proj) == name
    densify(decoder)
    assert not any(isinstance(module, PackedLinear) for module in decoder.modules())
    torch.testing.assert_close(decoder.logits(decoder(tokens)), expected)


@pytest.mark.parametrize("name", FORMATS_4)
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_decoder_is_packed_in_place(name, tied):
    decoder, tokens = wild("qwen3", tie_embeddings=tied, **SIZES), draw(2, 7)
    dense = {
        name: PACKED[name_].of(module.weight).matrix.dense()
        for name_ in (name,)
        for name, module in decoder.named_modules()
        if type(module) is torch.nn.Linear and name != "lm_head"
    }
    embedding = decoder.embed_tokens.weight.clone()
    quantise_decoder(decoder, name)
    assert weight_format(decoder.layers[0].mlp.up_proj) == name
    assert decoder.lm_head is None or weight_format(decoder.lm_head) == "dense"
    expected = wild("qwen3", tie_embeddings=tied, **SIZES)
    expected.load_state_dict(
        dict(expected.state_dict()) | {f"{k}.weight": v for k, v in dense.items()}
    )
    found = decoder.logits(decoder(tokens))
    torch.testing.assert_close(found, expected.logits(expected(tokens)), atol=1e-5, rtol=1e-5)
    quantise_decoder(decoder, name, skip=())
    assert weight_format(decoder.lm_head) == name
    assert not decoder.arch.tie_embeddings
    assert torch.equal(decoder.embed_tokens.weight, embedding)


def test_what_cannot_be_packed_is_refused_before_anything_is_changed():
    decoder = wild("qwen3", **SIZES | {"intermediate_size": 120})
    with pytest.raises(FormatError, match=r"down_proj.*no multiple of 16"):
        quantise_decoder(decoder, "nvfp4")
    assert weight_format(decoder.layers[0].self_attn.q_proj) == "dense"
    with pytest.raises(FormatError, match="no linear layer keeps fp8"):
        quantise_decoder(decoder, "fp8")
    with pytest.raises(FormatError, match="unknown number format"):
        quantise_decoder(decoder, "nvfp5")
    with pytest.raises(FormatError, match="NaN or infinite"):
        LinearNF4.of(torch.full((2, 64), float("nan")))
