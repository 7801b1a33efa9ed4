import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.sampling import BadSampling, SamplingParams, cut_tail, make_generators, sample

PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])


def kept(**params) -> list[int]:
    cut = cut_tail(PROBABILITIES.log()[None], SamplingParams(**params))
    return torch.isfinite(cut[0]).nonzero().ravel().tolist()


def test_cuts_keep_what_their_definitions_say():
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.76) == [0, 1, 2]
    assert kept(top_p=1e-6) == [0]
    assert kept(min_p=0.2) == [0, 1, 2]
    assert kept(min_p=1.0) == [0]
    assert kept(top_k=3, top_p=0.8) == [0, 1]  # the mass is that of the three kept
    assert kept(top_k=4, min_p=0.14) == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 6),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.lists(st.floats(-20, 20), min_size=5, max_size=5),
)
def test_the_best_token_survives_any_cut(top_k, top_p, min_p, logits):
    logits = torch.tensor([logits])
    cut = cut_tail(logits, SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p))
    assert torch.isfinite(cut[0, logits.argmax()])
    unchanged = torch.isfinite(cut)
    assert torch.equal(cut[unchanged], logits[unchanged])


def test_greedy_takes_the_best_and_its_log_probability():
    tokens, logprobs, raw, _ = sample(PROBABILITIES.log().repeat(2, 1), SamplingParams())
    assert tokens.tolist() == [0, 0]
    torch.testing.assert_close(logprobs, torch.full((2,), math.log(0.5)))
    assert torch.equal(raw, logprobs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_distribution(temperature):
    params = SamplingParams(temperature=temperature, seed=3)
    draws = 20_000
    [generator] = make_generators(params, [(0, 0)], "cpu")
    logits = PROBABILITIES.log().repeat(draws, 1)
    tokens, logprobs, raw, _ = sample(logits, params, [generator] * draws)
    expected = (PROBABILITIES.log() / temperature).softmax(0)
    found = torch.bincount(tokens, minlength=5) / draws
    # Four standard deviations of a frequency.
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()
    torch.testing.assert_close(logprobs, expected.log()[tokens])
    torch.testing.assert_close(raw, PROBABILITIES.log()[tokens])


def test_cut_tokens_are_never_drawn_and_what_is_left_sums_to_one():
    params = SamplingParams(temperature=1.0, top_k=2)
    generators = make_generators(params, [(0, 0)], "cpu") * 500
    tokens, logprobs, raw, _ = sample(PROBABILITIES.log().repeat(500, 1), params, generators)
    assert set(tokens.tolist()) == {0, 1}
    torch.testing.assert_close(raw, PROBABILITIES.log()[tokens])
    torch.testing.assert_close(logprobs, (PROBABILITIES / 0.75).log()[tokens])


def test_a_row_draws_alike_alone_and_in_a_batch():
    params = SamplingParams(temperature=1.0, seed=7)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    names = [(0, 0), (0, 1), (1, 0), (1, 1)]
    together = sample(logits, params, make_generators(params, names, "cpu"))[0]
    alone = [
        sample(logits[row : row + 1], params, make_generators(params, [name], "cpu"))[0].item()
        for row, name in enumerate(names)
    ]
    assert together.tolist() == alone


def test_seeds_and_names_give_different_draws():
    draws = set()
    for seed in range(3):
        for name in [(0, 0), (0, 1), (1, 0)]:
            [generator] = make_generators(SamplingParams(seed=seed), [name], "cpu")
            draws.add(torch.rand((), generator=generator).item())
    assert len(draws) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "cuts",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    ],
)
def test_distributions_are_those_of_transformers_processors(cuts):
    """Where no two logits are equal; ties at the cut Transformers breaks by position."""
    from ember.studies.p1.consistency.measure import processors

    params = SamplingParams(**{"temperature": 1.0} | cuts)
    logits = 3 * torch.randn(64, 101, generator=torch.Generator().manual_seed(0))
    ours = cut_tail((logits.log_softmax(-1) / params.temperature).log_softmax(-1), params)
    theirs = processors(params)(logits.clone())
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -2},
        {"n": 0},
        {"logprobs": -1},
        {"stop": ("",)},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
    ],
)
def test_parameters_out_of_range_are_named(bad):
    with pytest.raises(BadSampling, match=f"{next(iter(bad))} is"):
        SamplingParams(**bad)


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        ({"top_k": 2.5}, "whole number"),
        ({"top_k": None}, "whole number"),
        ({"n": "3"}, "whole number"),
        ({"max_tokens": True}, "whole number"),
        ({"seed": 0.5}, "whole number"),
        ({"logprobs": 1.0}, "whole number"),
        ({"stop_token_ids": ("7",)}, "whole number"),
        ({"stop_token_ids": 7}, "a list"),
        ({"stop_token_ids": (-1,)}, "0 or more"),
        ({"stop": 5}, "a list"),
        ({"stop": (5,)}, "not empty"),
        ({"temperature": "1"}, "Give a number"),
        ({"temperature": None}, "Give a number"),
        ({"temperature": math.inf}, "0 or more"),
        ({"top_p": math.nan}, r"\(0, 1\]"),
        ({"min_p": True}, "Give a number"),
        ({"ignore_eos": 1}, "True or False"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(bad, remedy):
    with pytest.raises(BadSampling, match=rf"^{next(iter(bad))} is(.|\n)*{remedy}"):
        SamplingParams(**bad)


def test_numbers_of_numpy_and_iterables_serve():
    given = SamplingParams(
        n=np.int64(2), temperature=np.float32(0.5), top_k=-1, stop_token_ids=iter([np.int32(3)])
    )
    assert given == SamplingParams(n=2, temperature=0.5, stop_token_ids=[3])
    assert (type(given.n), type(given.stop_token_ids[0])) == (int, int)


def test_a_missing_seed_is_drawn_and_a_given_one_stays():
    params = SamplingParams(seed=None)
    drawn = {params.with_seed().seed for _ in range(9)}
    assert len(drawn) == 9
    assert params.seed is None
    assert SamplingParams(seed=3).with_seed().seed == 3
