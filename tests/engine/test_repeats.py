"""Generation that repeats one token stops, with a diagnosis (L-4.4)."""

from dataclasses import replace

import pytest
import torch

from ember.backends.sampling import BadSampling, SamplingParams
from ember.engine.engine import Engine
from ember.engine.requests import Prompt, Row
from ember.engine.scheduler import Degenerate, check_repeats
from tests.tiny import wild


def test_a_completion_that_repeats_one_token_fails_with_a_diagnosis():
    decoder = wild("qwen3")
    with torch.no_grad():  # equal logits: always token 0
        decoder.lm_head.weight.zero_()
    engine = Engine(decoder, capacity=64)
    free = SamplingParams(max_tokens=12, ignore_eos=True)
    assert engine.generate([[1, 2, 3]], free)[0][0].tokens == (0,) * 12
    with pytest.raises(Degenerate, match=r"prompt 0 is token 0 5 times in a row"):
        engine.generate([[1, 2, 3]], replace(free, max_repeats=5))
    twelve = replace(free, max_repeats=13)
    assert len(engine.generate([[1, 2, 3]], twelve)[0][0].tokens) == 12  # it goes on afterwards


def test_repeats_are_counted_across_looks_and_apart():
    row = Row(Prompt(0, [1], SamplingParams(max_repeats=3), 1), 0, None)
    for tokens, fails in (([5, 5], False), ([6, 5, 5], False), ([7], False), ([7, 7], True)):
        row.tokens += tokens
        if fails:
            with pytest.raises(Degenerate, match="token 7 3 times"):
                check_repeats(row, len(tokens))
        else:
            check_repeats(row, len(tokens))


def test_max_repeats_is_two_or_more():
    with pytest.raises(BadSampling, match="max_repeats"):
        SamplingParams(max_repeats=1)
