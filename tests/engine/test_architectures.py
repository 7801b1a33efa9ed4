"""Every architecture through the engine: greedy tokens are Transformers', whatever runs them."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.model.checkpoint import save_decoder
from ember.model.families import FAMILIES
from tests.tiny import wild

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [9, 10, 11], [12]]
NEW = 14  # with the longest prompt more than twice the window


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    decoder = wild(request.param, max_positions=64)
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
    prefill = PrefixPrefill(RadixCache(1 << 20)) if reuse else None
    engine = Engine(decoder, capacity=24, prefill=prefill)
    for _ in range(1 + reuse):  # the second time all but a prompt's last token is stored
        found = engine.generate(PROMPTS, SamplingParams(max_tokens=NEW), num_candidates=2)
        for prompt, completions in zip(PROMPTS, found, strict=True):
            expected = generated(theirs, prompt)
            assert [list(c.tokens) for c in completions] == [expected, expected]
            assert len(expected) == NEW
            assert len(set(expected)) > 1  # a model that repeats itself shows nothing
    if reuse:
        assert [c[0].cached_tokens for c in found] == [len(prompt) - 1 for prompt in PROMPTS]
