"""The baselines: proper distributions, and as good as theory says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.text.ngram import BadNGram, NGram, unigram_log2_probs

VOCAB = 7
STREAMS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80)
SHORT = settings(max_examples=60, deadline=None)


def distribution(model: NGram, context: list[int], vocab_size: int = VOCAB) -> np.ndarray:
    """p of every token after a context."""
    every = [model.log2_probs(np.array([*context, token]))[-1] for token in range(vocab_size)]
    return np.exp2(every)


@SHORT
@given(STREAMS, st.lists(st.integers(0, VOCAB - 1), max_size=6), st.integers(1, 5))
def test_probabilities_sum_to_one_after_any_context(stream, context, order):
    model = NGram.fit(np.array(stream), VOCAB, order)
    probs = distribution(model, context)
    assert probs.shape == (VOCAB,)
    assert np.all(probs > 0)
    assert math.isclose(probs.sum(), 1, rel_tol=1e-9)


@SHORT
@given(STREAMS, STREAMS, st.integers(1, 4))
def test_a_stream_is_scored_as_its_contexts_are(stream, held_out, order):
    model = NGram.fit(np.array(stream), VOCAB, order)
    scores = model.log2_probs(np.array(held_out))
    for place, token in enumerate(held_out):
        one = distribution(model, held_out[:place])[token]
        assert math.isclose(scores[place], math.log2(one), rel_tol=1e-9, abs_tol=1e-9)


def test_kneser_ney_by_hand():
    # "a b a b a c": discounts fall back to 1/2 (too few counts of counts).
    a, b, c = 0, 1, 2
    model = NGram.fit(np.array([a, b, a, b, a, c]), 3, order=2)
    # Continuation counts: a after {b}, b after {a}, c after {a}; each (1 - 1/2)/3 + 1/2 · 1/3.
    lower = 1 / 3
    after_a = distribution(model, [a], 3)
    assert after_a[b] == pytest.approx((2 - 0.5) / 3 + (1 / 3) * lower)
    assert after_a[c] == pytest.approx((1 - 0.5) / 3 + (1 / 3) * lower)
    assert after_a[a] == pytest.approx((1 / 3) * lower)


def test_longer_context_helps_where_the_source_has_memory():
    random = np.random.default_rng(0)
    stream = [0, 1]
    for _ in range(8000):  # second-order source: mostly the sum of the last two
        stream.append((stream[-1] + stream[-2]) % 5 if random.random() < 0.9 else 4)
    train, test = np.array(stream[:6000]), np.array(stream[6000:])
    bits = [-NGram.fit(train, 5, order).log2_probs(test).mean() for order in (1, 2, 3)]
    unigram = -unigram_log2_probs(train, test, 5).mean()
    assert bits[0] == pytest.approx(unigram, abs=0.01)
    assert bits[2] < bits[1] - 0.3
    assert bits[2] < 0.9


def test_unigram_is_the_entropy_of_its_counts():
    tokens = np.array([0] * 600 + [1] * 300 + [2] * 100)
    entropy = -sum(p * math.log2(p) for p in (0.6, 0.3, 0.1))
    assert -unigram_log2_probs(tokens, tokens, 3).mean() == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize(
    ("tokens", "order", "message"),
    [([], 2, "no tokens"), ([0, 9], 2, "vocabulary of 7"), ([0, 1], 0, "of order 0")],
)
def test_bad_input_is_explained(tokens, order, message):
    with pytest.raises(BadNGram, match=message):
        NGram.fit(np.array(tokens, dtype=np.int64), VOCAB, order)
