"""The prefix cache changes no result: same tokens and logits with it as without, whatever comes."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.engine import prefill
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.measure.clock import PhaseClock
from ember.model import version
from tests.tiny import decoder_of, tiny

ARCH = tiny(
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    vocab_size=13,
    max_positions=64,
    tie_embeddings=True,
)
TOKEN_BYTES = ARCH.kv_bytes_per_token(4)
GREEDY = SamplingParams(max_tokens=4)
PLENTY = 1 << 20


def update_weights(decoder, seed):
    """An in-place update of all layers, such as a training step makes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def engines(budget):
    decoder = decoder_of(ARCH)
    cached = Engine(decoder, capacity=32, prefill=PrefixPrefill(RadixCache(budget)))
    return cached, Engine(decoder, capacity=32)


def prompts():
    """Prompts that share a few heads of up to ten tokens, so that reuse is common."""
    heads = st.sampled_from([(), (1, 2, 3), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (1, 2, 9, 9, 9)])
    tails = st.lists(st.integers(0, 12), min_size=1, max_size=6).map(tuple)
    return st.builds(lambda head, tail: head + tail, heads, tails)


BATCHES = st.lists(prompts(), min_size=1, max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("generate"), BATCHES, st.integers(1, 3)),
        st.tuples(st.just("prefill"), prompts(), st.none()),
        st.tuples(st.just("update"), st.integers(0, 99), st.sampled_from("abc")),
    ),
    min_size=2,
    max_size=10,
)


@given(steps=STEPS, budget_tokens=st.sampled_from([0, 3, 12, 30, 200]), repeat=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_sequence_gives_the_same_with_and_without(steps, budget_tokens, repeat):
    cached, plain = engines(budget_tokens * TOKEN_BYTES)
    for kind, what, more in steps + steps * repeat:
        if kind == "update":
            update_weights(plain.decoder, what)
            # Version names come back: "a", "b", "a" must not revive what "a" once meant.
            for engine in (cached, plain):
                engine.set_weights_version("")
                engine.set_weights_version(more)
        elif kind == "prefill":
            reused, fresh = cached.prefill_prompt(what), plain.prefill_prompt(what)
            torch.testing.assert_close(reused.logits, fresh.logits, atol=1e-4, rtol=1e-4)
            for layer in range(ARCH.num_layers):
                for mine, theirs in zip(
                    reused.cache.read(layer), fresh.cache.read(layer), strict=True
                ):
                    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        else:
            mine = cached.generate(what, GREEDY, num_candidates=more)
            theirs = plain.generate(what, GREEDY, num_candidates=more)
            for row, other in zip(chain(*mine), chain(*theirs), strict=True):
                assert row.tokens == other.tokens
                assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert row.versions == other.versions
                assert row.cached_tokens < row.prompt_tokens
                assert other.cached_tokens == 0
        assert cached.prefill.cache.stats.bytes <= cached.prefill.cache.budget_bytes


def test_a_stale_prefix_would_show(monkeypatch):
    """The property above has teeth: without the new version the old KV gives other logits."""
    monkeypatch.setattr(prefill, "content_of", lambda decoder: "always the same")
    cached, plain = engines(PLENTY)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    cached.prefill_prompt(prompt)
    update_weights(plain.decoder, 0)
    stale = cached.prefill_prompt(prompt).logits.clone()
    fresh = plain.prefill_prompt(prompt).logits
    assert (stale - fresh).abs().max() > 1e-2
    cached.set_weights_version("next")
    torch.testing.assert_close(cached.prefill_prompt(prompt).logits, fresh, atol=1e-4, rtol=1e-4)


def test_hits_partial_hits_and_repeats_reuse_what_they_can():
    cached, _ = engines(PLENTY)
    head = [1, 2, 3, 4, 5]
    reused = [
        cached.prefill_prompt(prompt).cached_tokens
        for prompt in ([*head, 6], [*head, 6], [*head, 7, 8], [2, 2], head[:3], [*head, 6, 9, 9])
    ]
    assert reused == [0, 5, 5, 0, 2, 6]
    stats = cached.prefill.cache.stats
    assert (stats.hits, stats.partial_hits, stats.misses) == (2, 2, 2)


def test_prompts_of_one_batch_share_their_head():
    cached, plain = engines(PLENTY)
    head = [1, 2, 3, 4, 5]
    batch = [[*head, 6], [*head, 7], [*head, 8]]
    mine = cached.generate(batch, GREEDY, num_candidates=2)
    theirs = plain.generate(batch, GREEDY, num_candidates=2)
    assert [[c.cached_tokens for c in row] for row in mine] == [[0, 0], [5, 5], [5, 5]]
    assert [[c.tokens for c in row] for row in mine] == [[c.tokens for c in row] for row in theirs]


def test_an_update_empties_the_cache_and_the_same_version_does_not():
    cached, _ = engines(PLENTY)
    cached.prefill_prompt([1, 2, 3])
    cached.set_weights_version("base")
    assert cached.prefill.cache.stats.bytes == 3 * TOKEN_BYTES
    cached.set_weights_version("round-1")
    assert cached.prefill.cache.stats.bytes == 0
    assert cached.prefill_prompt([1, 2, 3]).cached_tokens == 0


def test_a_small_budget_keeps_the_head_that_prompts_share():
    cached, _ = engines(9 * TOKEN_BYTES)
    head = [1, 2, 3, 4, 5]
    for tail in range(6, 13):
        cached.prefill_prompt([*head, tail, tail])
    assert cached.prefill_prompt([*head, 0]).cached_tokens == 5
    assert cached.prefill.cache.stats.evictions > 0


def test_lookup_and_store_are_timed_beside_the_prefill():
    cached, _ = engines(PLENTY)
    clock = PhaseClock("cpu")
    cached.prefill_prompt([1, 2, 3, 4], clock=clock)
    times = clock.times_ms()
    assert list(times) == ["lookup", "prefill", "store"]
    assert min(times.values()) > 0


def reused(engine) -> int:
    """Tokens of a prompt that came from the cache."""
    return engine.prefill_prompt((1, 2, 3, 4, 5, 6)).cached_tokens


def test_a_cache_in_two_engines_shares_between_equal_weights_alone():
    cache, decoder = RadixCache(PLENTY), decoder_of(ARCH)
    other, equal = decoder_of(ARCH), decoder_of(ARCH)
    update_weights(other, 1)
    first, second, third = (
        Engine(one, capacity=32, prefill=PrefixPrefill(cache)) for one in (decoder, other, equal)
    )
    assert [reused(first), reused(first)] == [0, 5]
    assert [reused(second), reused(second), reused(first)] == [0, 5, 5]
    assert reused(third) == 5
    alone = Engine(other, capacity=32).prefill_prompt((1, 2, 3, 4, 5, 6)).logits.clone()
    found = second.prefill_prompt((1, 2, 3, 4, 5, 6)).logits
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_weights_that_change_without_a_word_reuse_nothing_and_leave_nothing():
    decoder, cache = decoder_of(ARCH), RadixCache(PLENTY)
    engine = Engine(decoder, capacity=32, prefill=PrefixPrefill(cache))
    assert [reused(engine), reused(engine)] == [0, 5]
    held = cache.stats.bytes
    update_weights(decoder, 1)
    assert reused(engine) == 0
    assert cache.stats.bytes == held


def test_weights_are_hashed_once_for_as_long_as_they_stay(monkeypatch):
    hashed, real = [], version._content
    monkeypatch.setattr(version, "_content", lambda d: hashed.append(1) or real(d))
    decoder = decoder_of(ARCH)
    Engine(decoder, capacity=32).generate([(1, 2, 3)], GREEDY)
    assert not hashed, "without a prefix cache nobody asks for the content"
    engine = Engine(decoder, capacity=32, prefill=PrefixPrefill(RadixCache(PLENTY)))
    for _ in range(3):
        engine.generate([(1, 2, 3), (1, 2, 4)], GREEDY)
    assert len(hashed) == 1
