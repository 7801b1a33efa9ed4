"""Every architecture through the engine: greedy tokens are Transformers', whatever runs them."""

import logging

import pytest
import torch

from ember.backends.cuda import cover
from ember.backends.packing import why_unpacked
from ember.backends.sampling import SamplingParams
from ember.cache.contiguous import ContiguousCache
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.step import DecodeStep
from ember.model.architecture import FAMILIES, PRESETS, Architecture, RopeScaling
from ember.model.checkpoint import random_decoder, save_decoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_positions": 64,
}
CHANGES = {
    "llama": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
    # Untied, because a large embedding that is the head as well repeats the last token.
    "gemma3_text": {"sliding_window": 5, "sliding_layers": (0, 2), "tie_embeddings": False},
    "gpt_neox": {"num_kv_heads": 4, "rope_fraction": 0.5},
}
PACKED = ("qwen3", "qwen2", "llama")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [9, 10, 11], [12]]
NEW = 14  # with the longest prompt more than twice the window


def make(model_type: str):
    arch = Architecture.make(model_type=model_type, **SIZES | CHANGES.get(model_type, {}))
    decoder = random_decoder(arch)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return decoder


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    decoder = make(request.param)
    folder = save_decoder(decoder, tmp_path_factory.mktemp("model") / request.param)
    return decoder, AutoModelForCausalLM.from_pretrained(folder).eval()


def generated(theirs, prompt: list[int]) -> list[int]:
    out = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("reuse", [False, True])
def test_greedy_tokens_equal_transformers(pair, reuse):
    decoder, theirs = pair
    prefixes = RadixCache(1 << 20) if reuse else None
    engine = Engine(decoder, capacity=24, prefix_cache=prefixes)
    for _ in range(1 + reuse):  # the second time all but a prompt's last token is stored
        found = engine.generate(PROMPTS, SamplingParams(max_tokens=NEW), num_candidates=2)
        for prompt, completions in zip(PROMPTS, found, strict=True):
            expected = generated(theirs, prompt)
            assert [list(c.tokens) for c in completions] == [expected, expected]
            assert len(expected) == NEW
            assert len(set(expected)) > 1  # a model that repeats itself shows nothing
    if reuse:
        assert [c[0].cached_tokens for c in found] == [len(prompt) - 1 for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_steps_equal_one_pass_of_the_decoder(model_type, batch, caplog):
    caplog.set_level(logging.INFO, "ember.engine.step")
    decoder = make(model_type)
    tokens = torch.randint(61, (batch, 20), generator=torch.Generator().manual_seed(1))
    cache, truth = (ContiguousCache(decoder.arch, batch, 20) for _ in range(2))
    step = DecodeStep(decoder, cache)
    assert ("not the fast step" in caplog.text) == (model_type not in PACKED)
    with torch.inference_mode():
        expected = decoder.logits(decoder(tokens, cache=truth))
        decoder(tokens[:, :3], cache=cache)
    for at in range(3, 20):
        torch.testing.assert_close(step(tokens[:, at]), expected[:, at], atol=1e-4, rtol=0)
        assert [cache.length(layer) for layer in range(3)] == [at + 1] * 3
    for layer in range(3):
        torch.testing.assert_close(cache.read(layer), truth.read(layer), atol=1e-4, rtol=0)
    assert step.is_current()


def test_kernels_refuse_what_cannot_be_packed(monkeypatch):
    monkeypatch.setattr(cover, "interpreted", lambda: True)
    for arch in PRESETS.values():
        cache = ContiguousCache(arch, 1, 1)
        reason = cover.why_not(arch, cache.kv, 1)
        if arch.model_type in PACKED:
            assert why_unpacked(arch) is None
            assert reason is None or "Triton" in reason
        else:
            assert reason == why_unpacked(arch)
            assert "norm" in reason
