"""Packed weights are the decoder's own: changes show, training goes on, moves are noticed."""

import pytest
import torch

from ember.backends.packing import PackedDecoder, addresses, pack
from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.model.checkpoint import load_decoder, save_decoder
from tests.backends.steps import BACKENDS, backend_of, step_through
from tests.tiny import ARCHITECTURES, draw, wild


@torch.inference_mode()
def compare(decoder, backend) -> None:
    """Steps after a prefill equal one eager pass."""
    tokens = draw(1, 20)
    backend.leave([], 0)
    expected = decoder.logits(decoder(tokens))[:, 4:].transpose(0, 1)
    torch.testing.assert_close(step_through(backend, tokens, 5), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "fields",
    [
        {"tie_embeddings": True},
        {"tie_embeddings": False},
        {"qkv_bias": True, "o_bias": True},
        {"num_kv_heads": 4},
        {"mlp_bias": True},
        {"head_dim": 24, "hidden_size": 56, "num_heads": 8},  # not multiples of a vector
    ],
    ids=lambda fields: "-".join(fields),
)
def test_every_switch_of_a_packed_layer(backend, architecture, fields):
    decoder = wild(architecture, **fields)
    compare(decoder, backend_of(backend, decoder))


def test_changed_weights_show_at_once():
    decoder = wild("qwen3")
    made = backend_of("compiled", decoder)
    before = addresses(decoder)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1.1)
    compare(decoder, made)
    decoder.load_state_dict(wild("qwen3", tie_embeddings=False).state_dict())
    assert addresses(decoder) == before
    compare(decoder, made)


def test_a_packed_decoder_still_trains_and_saves(tmp_path):
    decoder = wild("qwen3")
    made = backend_of("compiled", decoder)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, fused=True)
    before = decoder.layers[0].self_attn.k_proj.weight.clone()
    decoder.logits(decoder(draw(1, 8))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, decoder.layers[0].self_attn.k_proj.weight)
    compare(decoder, made)
    save_decoder(decoder, tmp_path / "model")
    loaded = load_decoder(tmp_path / "model")
    for (name, saved), (_, kept) in zip(
        loaded.named_parameters(), decoder.named_parameters(), strict=True
    ):
        assert torch.equal(saved, kept), name


def test_packing_twice_moves_nothing_and_a_moved_weight_is_noticed():
    decoder = wild("qwen3")
    first = PackedDecoder(decoder)
    before = addresses(decoder)
    assert PackedDecoder(decoder).layers[0].qkv.data_ptr() == first.layers[0].qkv.data_ptr()
    assert addresses(decoder) == before
    engine, greedy = Engine(decoder, capacity=16), SamplingParams(max_tokens=6)
    engine.generate([[1, 2, 3]], greedy)
    kept = engine.backend
    engine.generate([[1, 2, 3]], greedy)
    assert engine.backend is kept
    projection = decoder.layers[1].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * -2)
    assert addresses(decoder) != before
    [[found]] = engine.generate([[1, 2, 3]], greedy)
    assert engine.backend is not kept
    [[expected]] = Engine(decoder, capacity=16, backend="eager").generate([[1, 2, 3]], greedy)
    assert found.tokens == expected.tokens


def test_pack_makes_views_of_one_block():
    parts = [torch.nn.Parameter(torch.full((n, 3), float(n))) for n in (1, 2, 3)]
    packed = pack(parts)
    torch.testing.assert_close(packed, torch.cat([p.detach() for p in parts]))
    with torch.no_grad():
        parts[1].fill_(9.0)
    assert (packed[1:3] == 9.0).all()
    assert pack(parts).data_ptr() == packed.data_ptr()
    # Neighbours in another order do not lie as the block asks.
    other = pack([parts[1], parts[0]])
    torch.testing.assert_close(other, torch.cat([parts[1].detach(), parts[0].detach()]))


def test_a_wrapped_linear_is_refused():
    class Wrapped(torch.nn.Linear):
        pass

    decoder = wild("llama")
    decoder.layers[0].mlp.up_proj = Wrapped(32, 48, bias=False)
    with pytest.raises(TypeError, match=r"a Wrapped is not(.|\n)*Merge adapters"):
        PackedDecoder(decoder)
