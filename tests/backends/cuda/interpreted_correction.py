"""The correction of stale keys and values against torch, under Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from ember.backends.cuda.correction import correct
from ember.backends.forward import Forward
from ember.lora.adapter import LowRank
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.model.decoder import rotate
from ember.policies.execute import PromptKV, run_plan
from ember.policies.plan import Plan

EPS = 1e-6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("tokens", "rank", "heads", "dim", "rotated"),
    [
        (1, 8, 1, 32, 32),
        (33, 3, 2, 64, 64),
        (70, 16, 2, 32, 32),
        (9, 8, 2, 80, 20),
        (9, 8, 1, 8, 4),
    ],
)
def test_correction(tokens, rank, heads, dim, rotated, normed):
    layers, chosen = 3, [2, 0]
    kv = torch.full((layers, 2, heads, tokens + 5, dim), torch.nan)
    kv[:, :, :, :tokens] = draw(layers, 2, heads, tokens, dim)
    factors = draw(2, 2, tokens + 2, rank)  # room for more tokens
    moved = draw(2, 2, heads * dim, rank, seed=1)
    moved[1, 0] = 0  # a projection that has not moved
    raw = draw(2, tokens + 1, heads, dim) if normed else None
    norms = 1 + 0.3 * draw(2, dim) if normed else None
    angles = draw(2, tokens, dim // 2)  # of two kinds of layers
    angles[..., rotated // 2 :] = 0
    tables, kinds = (angles.cos(), angles.sin()), torch.tensor([1, 0, 0], dtype=torch.int32)

    before, old_raw = kv.clone(), None if raw is None else raw.clone()
    places = torch.tensor(chosen, dtype=torch.int32)
    about = {"rotated": rotated, "eps": EPS, "offset": dim == 8}
    correct(kv, factors, moved, places, tables, kinds, raw=raw, norms=norms, **about)
    for n, layer in enumerate(chosen):
        table = [x[kinds[layer], None, :, None, : rotated // 2] for x in tables]
        changes = (factors[n, :, :tokens] @ moved[n].transpose(1, 2)).unflatten(-1, (heads, dim))
        if normed:
            expected = old_raw[n].clone()
            expected[:tokens] += changes[0]
            torch.testing.assert_close(raw[n], expected, atol=1e-5, rtol=1e-5)
            keys = F.rms_norm(raw[n, :tokens], (dim,), norms[n] + (dim == 8), EPS)
            keys = rotate(keys[None], *table)[0].transpose(0, 1)
        else:
            turned = rotate(changes[0][None], *table)[0].transpose(0, 1)
            keys = before[layer, 0, :, :tokens] + turned
        values = before[layer, 1, :, :tokens] + changes[1].transpose(0, 1)
        torch.testing.assert_close(kv[layer, 0, :, :tokens], keys, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(kv[layer, 1, :, :tokens], values, atol=1e-5, rtol=1e-5)
    assert kv[:, :, :, tokens:].isnan().all()
    assert torch.equal(kv[1, :, :, :tokens], before[1, :, :, :tokens])


def test_correcting_by_nothing_changes_nothing_in_16_bits():
    tokens, heads, dim = 20, 2, 32
    kv = draw(1, 2, heads, tokens, dim).half()
    raw, norms = draw(1, tokens, heads, dim).half(), 1 + 0.3 * draw(1, dim).half()
    factors, angles = draw(1, 2, tokens, 4).half(), draw(tokens, dim // 2)
    where = torch.zeros(1, dtype=torch.int32)
    states = []
    for size in (0.5, 0.0):
        moved = size * draw(1, 2, heads * dim, 4).half()
        tables = (angles.cos()[None], angles.sin()[None])
        correct(kv, factors, moved, where, tables, where, rotated=dim, raw=raw, norms=norms)
        states.append((kv.clone(), raw.clone()))
    for first, second in zip(*states, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gemma3_text", "gpt_neox"])
@torch.inference_mode()
def test_a_corrected_cache(model_type):
    """By the kernel as elsewhere, layer by layer, by torch's operators."""
    tokens, rank, scale, layers = 21, 4, 2.0, range(2)
    decoder = random_decoder(
        Architecture.make(
            model_type=model_type,
            hidden_size=32,
            intermediate_size=32,
            num_layers=len(layers),
            num_heads=4,
            num_kv_heads=4 if model_type == "gpt_neox" else 2,
            head_dim=32,
            vocab_size=50,
            max_positions=64,
        )
    )
    keys = [(layer, name) for layer in layers for name in ("k_proj", "v_proj")]
    a = {key: draw(rank, 32, seed=n) for n, key in enumerate(keys)}
    old, new = (
        {
            key: LowRank(a[key], draw(32 * decoder.arch.num_kv_heads, rank, seed=10 * n + m), scale)
            for n, key in enumerate(keys)
        }
        for m in (1, 2)
    )
    found = []
    for fused in (True, False):
        kv = PromptKV.empty(decoder, range(tokens))
        run_plan(Forward(decoder), kv, Plan.full(len(layers)), adapter=old)
        assert kv.cache._fused
        kv.cache._fused = fused
        assert kv.cache.correct(new) == len(keys)
        assert (kv.cache.raw_keys is not None) == decoder.arch.qk_norm
        kept = () if kv.cache.raw_keys is None else (kv.cache.raw_keys,)
        found.append((kv.cache.kv, *kept))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
