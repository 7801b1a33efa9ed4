"""The engine's completions against a plain loop over the decoder; phases, stops, prefix reuse."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.sampling import SamplingParams, make_generators, prompt_key, sample
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.engine.requests import BadPrompt
from ember.measure.clock import PhaseClock
from tests.tiny import wild

SMALL = {"num_layers": 2, "vocab_size": 31, "tie_embeddings": True}


@pytest.fixture(scope="module")
def decoder():
    return wild(**SMALL)


@torch.inference_mode()
def plain_loop(decoder, prompt, sampling, candidate=0):
    """Tokens and log-probabilities by running the whole sequence anew for every token."""
    generators = make_generators(sampling, [(prompt_key(prompt), candidate)], "cpu")
    tokens, logprobs = [], []
    for _ in range(sampling.max_tokens):
        logits = decoder.logits(decoder(torch.tensor([prompt + tokens])))[:, -1]
        token, logprob, _, _ = sample(logits, sampling, generators)
        tokens.append(token.item())
        logprobs.append(logprob.item())
        if tokens[-1] in sampling.stop_token_ids:
            break
    return tokens, logprobs


def assert_equals(completion, expected):
    tokens, logprobs = expected
    assert list(completion.tokens) == tokens
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11], [12], [3, 2, 1, 0, 5]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_equal_a_plain_loop(decoder, temperature):
    sampling = SamplingParams(max_tokens=9, temperature=temperature, top_p=0.9, seed=5)
    found = Engine(decoder, capacity=16).generate(PROMPTS, sampling, num_candidates=2)
    for prompt, completions in zip(PROMPTS, found, strict=True):
        for c, completion in enumerate(completions):
            assert_equals(completion, plain_loop(decoder, prompt, sampling, c))
            assert completion.finish_reason == "length"
            assert completion.prompt_tokens == len(prompt)
            assert completion.cached_tokens == 0
            assert completion.versions == ("base",) * 9


def test_a_stop_token_ends_its_row_only(decoder):
    free = SamplingParams(max_tokens=9, temperature=1.0, seed=5)
    stop = plain_loop(decoder, PROMPTS[0], free)[0][3]
    sampling = SamplingParams(max_tokens=9, temperature=1.0, seed=5, stop_token_ids=(stop,))
    found = Engine(decoder, capacity=16).generate(PROMPTS, sampling)
    for p, [completion] in enumerate(found):
        expected = plain_loop(decoder, PROMPTS[p], sampling)
        assert_equals(completion, expected)
        stopped = expected[0][-1] == stop
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert found[0][0].finish_reason == "stop"


def test_phases_are_timed_apart(decoder):
    clock = PhaseClock("cpu")
    engine = Engine(decoder, capacity=16)
    engine.generate([PROMPTS[0]], SamplingParams(max_tokens=6), clock=clock)
    assert list(clock.times_ms()) == ["prefill", "sampling", "decode", "transfer"]
    assert all(ms > 0 for ms in clock.times_ms().values())
    assert clock.calls()["decode"] == 5  # the first token comes from the prefill
    assert clock.calls()["sampling"] == 6
    assert clock.calls()["transfer"] == 1  # without stop tokens nobody looks before the end


def test_threads_are_restored(decoder):
    threads = torch.get_num_threads()
    Engine(decoder, capacity=16).generate(PROMPTS, SamplingParams(max_tokens=3))
    assert torch.get_num_threads() == threads


def test_weights_that_moved_are_packed_again(decoder):
    other = wild(**SMALL, seed=3)
    sampling = SamplingParams(max_tokens=6)
    engine = Engine(other, capacity=16)
    engine.generate([PROMPTS[0]], sampling)
    other.load_state_dict(
        {name: value.clone() for name, value in decoder.state_dict().items()}, assign=True
    )
    [[completion]] = engine.generate([PROMPTS[0]], sampling)
    assert_equals(completion, plain_loop(decoder, PROMPTS[0], sampling))


def flat(completions):
    return list(itertools.chain.from_iterable(completions))


requests = st.lists(
    st.tuples(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=3),
        st.integers(1, 2),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(requests, st.sampled_from([0, 2000, 10**6]))
def test_any_sequence_of_requests_is_the_same_with_the_prefix_cache(decoder, requests, budget):
    """Prompts of three token ids share prefixes often; a small budget evicts."""
    plain = Engine(decoder, capacity=12)
    cached = Engine(decoder, capacity=12, prefill=PrefixPrefill(RadixCache(budget)))
    for number, (prompts, candidates, update) in enumerate(requests):
        if update:
            plain.set_weights_version(str(number))
            cached.set_weights_version(str(number))
        sampling = SamplingParams(max_tokens=4, temperature=1.0, seed=number)
        expected = plain.generate(prompts, sampling, num_candidates=candidates)
        found = cached.generate(prompts, sampling, num_candidates=candidates)
        for one, other in zip(flat(expected), flat(found), strict=True):
            assert other.tokens == one.tokens
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
            assert other.versions == one.versions
            assert 0 <= other.cached_tokens < other.prompt_tokens


def test_a_repeated_prompt_runs_only_its_last_token(decoder):
    engine = Engine(decoder, capacity=16, prefill=PrefixPrefill(RadixCache(10**6)))
    clock = PhaseClock("cpu")
    first = engine.prefill_prompt(PROMPTS[1], clock=clock)
    assert (first.cached_tokens, first.logits.shape) == (0, (1, 31))
    expected = first.logits.clone()
    again = engine.prefill_prompt(PROMPTS[1], clock=clock)
    assert again.cached_tokens == 4
    torch.testing.assert_close(again.logits, expected, atol=1e-4, rtol=0)
    assert list(clock.times_ms()) == ["lookup", "prefill", "store"]
    engine.set_weights_version("next")
    assert engine.prefill_prompt(PROMPTS[1]).cached_tokens == 0
    assert engine.weights_version == "next"


@pytest.mark.parametrize(
    ("prompts", "candidates", "message"),
    [
        ([[]], 1, "empty"),
        ([[1], list(range(14))], 1, "14 prompt tokens and 3 new(.|\n)*capacity of 16"),
        ([[31]], 1, r"outside of 0 … 30"),
        ([[-1]], 1, "outside of 0"),
        ([[1]], 0, "num_candidates is 0"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(decoder, prompts, candidates, message):
    engine = Engine(decoder, capacity=16)
    clock = PhaseClock("cpu")
    with pytest.raises(BadPrompt, match=message):
        engine.generate(
            prompts,
            SamplingParams(max_tokens=3),
            num_candidates=candidates,
            clock=clock,
        )
    assert clock.times_ms() == {}


def test_no_prompts_give_no_completions(decoder):
    assert Engine(decoder, capacity=16).generate([], SamplingParams()) == []
