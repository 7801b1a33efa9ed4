"""Steps with packed weights against the eager decoder, under Triton's interpreter."""

import copy

import pytest
import torch

from ember.backends.cuda import packed
from ember.backends.packing import PackedDecoder, addresses
from ember.model.packed import quantise_decoder
from tests.backends.steps import backend_of, step_through
from tests.tiny import draw as draw_tokens
from tests.tiny import wild

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "vocab_size": 67,
    "max_positions": 64,
}


@pytest.mark.parametrize(
    ("architecture", "rows", "skip"),
    [
        *[("qwen3", 1, ()), ("qwen3", 3, ("lm_head",)), ("qwen3", 10, ()), ("gemma3_text", 3, ())],
        *[("qwen3", 3, ("down_proj",)), ("gpt_neox", 3, ())],
    ],
)
@torch.inference_mode()
def test_the_whole_step_decodes_with_packed_weights(architecture, rows, skip):
    def made():
        decoder = wild(architecture, scale=0.1, tie_embeddings=False, **SIZES)
        quantise_decoder(decoder, "nvfp4", skip=skip)
        return decoder

    tokens = draw_tokens(rows, 7, vocabulary=67)
    decoder = made()
    assert PackedDecoder(decoder).layers[0].qkv.format == "nvfp4"
    exact = decoder.double()
    expected = exact.logits(exact(tokens))[:, 4:].transpose(0, 1)
    found = step_through(backend_of("kernels", made(), rows=rows), tokens, 5)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "rows", "layers"),
    [("qwen3", 3, 2), ("gemma3_text", 2, 3), ("gpt_neox", 2, 2)],
)
@torch.inference_mode()
def test_a_step_whose_rows_stay_in_registers(architecture, rows, layers, monkeypatch):
    """As all products of 2 to 8 rows do in bfloat16, which the interpreter multiplies wrongly."""
    stayed, wide = set(), packed.wide

    def noted(x, weight, out, *, tiling, **how):
        if "pdl" in how:  # of a step, not of a prefill
            stayed.add(tiling.programs > 0)
        return wide(x, weight, out, tiling=tiling, **how)

    monkeypatch.setattr(packed, "wide", noted)
    decoder = wild(architecture, scale=0.1, tie_embeddings=False, **SIZES | {"num_layers": layers})
    quantise_decoder(decoder, "nvfp4", skip=())
    tokens = draw_tokens(rows, 7, vocabulary=67)
    exact = copy.deepcopy(decoder).double()
    expected = exact.logits(exact(tokens))[:, 4:].transpose(0, 1)
    made = backend_of("kernels", decoder, rows=rows)
    made.step._stays = True
    found = step_through(made, tokens, 5)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    assert stayed == {True}


@torch.inference_mode()
def test_codes_are_laid_for_kernels_and_back_for_others():
    """In place: whoever asks the decoder gets what it had; who read the old order reads anew."""
    decoder = wild("qwen3", scale=0.1, tie_embeddings=False, **SIZES)
    quantise_decoder(decoder, "nvfp4", skip=())
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    dense = decoder.layers[1].mlp.down_proj.matrix.dense()
    place, weights = addresses(decoder), PackedDecoder(decoder, laid=True)
    matrix = weights.layers[1].down
    assert matrix.order != "file"
    assert not torch.equal(matrix.codes, before["layers.1.mlp.down_proj.qdata"])
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    layer = decoder.layers[1].mlp.down_proj
    assert torch.equal(layer.matrix.dense(), dense)
    assert torch.equal(layer.quantised().codes, copy.deepcopy(layer).quantised().codes)
    laid = addresses(decoder)
    assert laid != place
    plain = PackedDecoder(decoder).layers[1].down
    assert plain.order == "file"
    assert plain.codes.data_ptr() == matrix.codes.data_ptr()
    assert torch.equal(plain.codes, before["layers.1.mlp.down_proj.qdata"])
    assert addresses(decoder) != laid
    PackedDecoder(decoder, laid=True)
    decoder.load_state_dict(before)
    assert layer.order == "file"
    assert torch.equal(layer.matrix.dense(), dense)
