"""Steps with packed weights against the eager decoder, under Triton's interpreter."""

import copy

import pytest
import torch

from ember.backends.cuda import packed, step
from ember.backends.packing import PackedDecoder
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
    ("architecture", "rows", "fused"),
    [("qwen3", 3, {"norm", "mlp"}), ("gemma3_text", 10, {"norm", "mlp"}), ("qwen3", 3, set())],
)
@torch.inference_mode()
def test_a_step_whose_products_read_float16(architecture, rows, fused, monkeypatch):
    """As steps in bfloat16 do: what is normed lies in float16, the residual stream does not."""
    monkeypatch.setattr(step, "kind_of_places", lambda *_: torch.float16)
    decoder = wild(architecture, scale=0.1, tie_embeddings=False, **SIZES)
    quantise_decoder(decoder, "nvfp4", skip=())
    tokens = draw_tokens(rows, 7, vocabulary=67)
    made = backend_of("kernels", decoder, rows=rows)
    made.step.fused = frozenset(fused)
    found = step_through(made, tokens, 5)
    exact = decoder.double()
    expected = exact.logits(exact(tokens))[:, 4:].transpose(0, 1)
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=1e-2)
    assert (found.double() - expected).abs().max() > 1e-4, "float16 was read"


def test_float16_is_read_where_norms_keep_it_in_range(monkeypatch):
    monkeypatch.setattr(packed, "has_fp8", lambda device: True)
    decoder = wild("qwen3", scale=0.1, tie_embeddings=False, **SIZES)
    quantise_decoder(decoder, "nvfp4", skip=("lm_head",))
    arch, kinds = decoder.arch, []
    for size in (1.0, 1e4, 1e-4):
        weights = PackedDecoder(decoder)
        weights.layers[1].post_norm.weight.fill_(size)
        kinds.append(step.kind_of_places(arch, weights, torch.bfloat16))
    assert kinds == [torch.float16, torch.bfloat16, torch.bfloat16]
    monkeypatch.setattr(packed, "has_fp8", lambda device: False)
    weights.layers[1].post_norm.weight.fill_(1.0)
    assert step.kind_of_places(arch, weights, torch.bfloat16) == torch.bfloat16
    assert step.kind_of_places(arch, weights, torch.float32) == torch.float32
    mixed = wild("qwen3", scale=0.1, tie_embeddings=False, **SIZES)
    quantise_decoder(mixed, "nvfp4", skip=("down_proj",))
    assert step.kind_of_places(arch, PackedDecoder(mixed), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("architecture", "rows", "layers"),
    [("qwen3", 3, 2), ("gemma3_text", 2, 3), ("gpt_neox", 2, 2)],
)
@torch.inference_mode()
def test_a_step_whose_rows_stay_in_registers(architecture, rows, layers, monkeypatch):
    """In half precision all of its products; attention and norms write the order of places."""
    cuts, wide = set(), packed.wide

    def noted(x, weight, out, *, tiling, **how):
        cuts.add((x.dim(), tiling.programs > 0))
        return wide(x, weight, out, tiling=tiling, **how)

    monkeypatch.setattr(packed, "wide", noted)
    decoder = wild(architecture, scale=0.1, tie_embeddings=False, **SIZES | {"num_layers": layers})
    quantise_decoder(decoder, "nvfp4", skip=())
    tokens = draw_tokens(rows, 7, vocabulary=67)
    exact = copy.deepcopy(decoder).double()
    expected = exact.logits(exact(tokens))[:, 4:].transpose(0, 1)
    found = step_through(backend_of("kernels", decoder.half(), rows=rows), tokens, 5)
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=1e-2)
    assert (4, True) in cuts
    assert (4, False) not in cuts
