"""The fast step against the eager decoder, which is the truth."""

import pytest
import torch

from ember.backends.packing import pack
from ember.cache.base import CacheFull
from ember.cache.contiguous import ContiguousCache
from ember.engine.step import MASKED, SPLIT, DecodeStep, DeviceStep, attend_masked, swapped_tables
from ember.model.architecture import Architecture, RopeScaling
from ember.model.checkpoint import load_decoder, random_decoder, save_decoder
from ember.model.decoder import attend

TOLERANCE = 1e-4
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 67,
    "max_positions": 128,
}
SHAPES = {
    "qwen3-tied": {"model_type": "qwen3", "tie_embeddings": True},
    "qwen3-bias": {"model_type": "qwen3", "qkv_bias": True, "o_bias": True},
    "qwen3-mha": {"model_type": "qwen3", "num_kv_heads": 4},
    "qwen2": {"model_type": "qwen2"},
    "llama": {"model_type": "llama", "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)},
    "llama-mlp-bias": {"model_type": "llama", "mlp_bias": True},
}


def make(**fields):
    decoder = random_decoder(Architecture.make(**SIZES | fields), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Wild weights, so that attention is far from uniform and every weight matters.
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return decoder


def draw(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(67, (batch, tokens), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def compare(decoder, step, cache, tokens, prefilled: int = 5) -> None:
    """Steps through the tokens after a prefill; logits and caches equal those of one eager pass."""
    cache.reset()
    truth = ContiguousCache(decoder.arch, *tokens.shape)
    expected = decoder.logits(decoder(tokens, cache=truth))
    decoder(tokens[:, :prefilled], cache=cache)
    for t in range(prefilled, tokens.shape[1]):
        torch.testing.assert_close(step(tokens[:, t]), expected[:, t], atol=TOLERANCE, rtol=0)
    for layer in range(decoder.arch.num_layers):
        torch.testing.assert_close(cache.read(layer), truth.read(layer), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_the_eager_decoder(shape, batch):
    decoder = make(**SHAPES[shape])
    cache = ContiguousCache(decoder.arch, batch, 20)
    compare(decoder, DecodeStep(decoder, cache), cache, draw(batch, 20))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_form_for_devices_equals_the_eager_decoder(shape):
    """Position on the device and attention over the whole static cache, without a graph."""
    decoder = make(**SHAPES[shape])
    cache = ContiguousCache(decoder.arch, 2, 2 * SPLIT)
    step = DecodeStep(decoder, cache)
    tables = swapped_tables(decoder.arch, cache.capacity, cache.kv.dtype, cache.kv.device)
    step._step = DeviceStep(decoder.arch, step._weights, cache, *tables)
    compare(decoder, step, cache, draw(2, 20))


@torch.inference_mode()
def test_a_bfloat16_step_follows_the_eager_decoder():
    decoder = make(**SHAPES["qwen3-tied"]).to(torch.bfloat16)
    cache = ContiguousCache(decoder.arch, 2, SPLIT, dtype=torch.bfloat16)
    step = DecodeStep(decoder, cache)
    tokens = draw(2, 12)
    expected = decoder.logits(decoder(tokens))
    decoder(tokens[:, :5], cache=cache)
    for t in range(5, 12):
        found = step(tokens[:, t])
        assert found.dtype == torch.bfloat16
        difference = (found - expected[:, t]).float().norm() / expected[:, t].float().norm()
        assert difference < 0.03  # bfloat16 has 8 bits


@pytest.mark.parametrize("length", [1, 7, SPLIT, SPLIT + 1, 3 * SPLIT])
def test_masked_attention_in_parts_equals_attention(length):
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 2, 3, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 3 * SPLIT, 16, generator=generator).unbind()
    bias = (torch.arange(3 * SPLIT) >= length) * MASKED
    expected = attend(q.view(2, 6, 1, 16), k[:, :, :length], v[:, :, :length])
    found = attend_masked(q, k, v, bias)
    torch.testing.assert_close(found.view(2, 6, 1, 16), expected, atol=1e-5, rtol=0)


def test_changed_weights_show_at_once():
    decoder = make(**SHAPES["qwen3-tied"])
    cache = ContiguousCache(decoder.arch, 1, 20)
    step = DecodeStep(decoder, cache)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1.1)
    compare(decoder, step, cache, draw(1, 20))
    decoder.load_state_dict(make(**SHAPES["qwen3-mha"] | {"num_kv_heads": 2}).state_dict(), False)
    assert step.is_current()
    compare(decoder, step, cache, draw(1, 20))


def test_a_packed_decoder_still_trains_and_saves(tmp_path):
    decoder = make(**SHAPES["qwen3-tied"])
    with torch.inference_mode():
        cache = ContiguousCache(decoder.arch, 1, 20)
        step = DecodeStep(decoder, cache)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, fused=True)
    before = decoder.layers[0].self_attn.k_proj.weight.clone()
    decoder.logits(decoder(draw(1, 8))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, decoder.layers[0].self_attn.k_proj.weight)
    compare(decoder, step, cache, draw(1, 20))
    save_decoder(decoder, tmp_path / "model")
    loaded = load_decoder(tmp_path / "model")
    for (name, saved), (_, kept) in zip(
        loaded.named_parameters(), decoder.named_parameters(), strict=True
    ):
        assert torch.equal(saved, kept), name


def test_packing_twice_moves_nothing_and_a_moved_weight_is_noticed():
    decoder = make(**SHAPES["qwen3-tied"])
    cache = ContiguousCache(decoder.arch, 1, 20)
    first = DecodeStep(decoder, cache)
    DecodeStep(decoder, ContiguousCache(decoder.arch, 2, 20))
    assert first.is_current()
    projection = decoder.layers[1].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 2)
    assert not first.is_current()
    compare(decoder, DecodeStep(decoder, cache), cache, draw(1, 20))


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


def test_making_a_step_leaves_the_cache_and_the_threads_as_they_were():
    decoder = make(**SHAPES["qwen3-tied"])
    cache = ContiguousCache(decoder.arch, 2, 20)
    with torch.inference_mode():
        decoder(draw(2, 4), cache=cache)
    before, threads = cache.kv.clone(), torch.get_num_threads()
    DecodeStep(decoder, cache)
    assert torch.equal(cache.kv, before)
    assert cache.length(0) == 4
    assert torch.get_num_threads() == threads


def test_a_full_cache_is_an_error():
    decoder = make(**SHAPES["llama"])
    step = DecodeStep(decoder, ContiguousCache(decoder.arch, 1, 2))
    for _ in range(2):
        step(torch.tensor([1]))
    with pytest.raises(CacheFull, match="capacity is 2"):
        step(torch.tensor([1]))


def test_a_wrapped_linear_is_refused():
    class Wrapped(torch.nn.Linear):
        pass

    decoder = make(**SHAPES["llama"])
    decoder.layers[0].mlp.up_proj = Wrapped(48, 64, bias=False)
    with pytest.raises(TypeError, match=r"cannot pack a Wrapped(.|\n)*Merge adapters"):
        DecodeStep(decoder, ContiguousCache(decoder.arch, 1, 8))
