"""What may be asked of the engine: prompts of any kind, ends of text, seeds; what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from ember.backends.sampling import BadSampling, SamplingParams
from ember.engine.engine import Engine
from ember.engine.requests import BadPrompt
from ember.model.checkpoint import load_decoder, save_decoder
from tests.tiny import wild

PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [8]]
FREE = SamplingParams(n=2, max_tokens=12, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def decoder():
    return wild("qwen3")


@pytest.fixture
def engine(decoder):
    return Engine(decoder, capacity=20, detokenize=letters)


def letters(tokens) -> str:
    return "".join(chr(97 + token) for token in tokens)


def tokens_of(completions):
    return [[c.tokens for c in row] for row in completions]


@pytest.mark.parametrize(
    "prompts",
    [
        tuple(map(tuple, PROMPTS)),
        (prompt for prompt in PROMPTS),
        [iter(prompt) for prompt in PROMPTS],
        [np.array(prompt) for prompt in PROMPTS],
        [np.array(prompt, dtype=np.uint8) for prompt in PROMPTS],
        [torch.tensor(prompt) for prompt in PROMPTS],
    ],
    ids=["tuples", "generator", "iterators", "numpy", "bytes", "torch"],
)
def test_prompts_of_any_kind(engine, prompts):
    params = (dataclasses.replace(FREE) for _ in PROMPTS)
    assert tokens_of(engine.generate(prompts, params)) == tokens_of(engine.generate(PROMPTS, FREE))


def test_an_array_of_prompts_is_its_rows_and_an_empty_one_none(engine):
    rows = np.array([[1, 2, 3], [3, 2, 1]])
    assert tokens_of(engine.generate(rows, FREE)) == tokens_of(engine.generate(rows.tolist(), FREE))
    assert engine.generate(np.zeros((0, 3), dtype=int), FREE) == []
    assert engine.generate(iter(()), FREE) == []
    logits = engine.prefill_prompt(rows[0]).logits.clone()
    assert torch.equal(engine.prefill_prompt([1, 2, 3]).logits, logits)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("text", "prompts is 'text'"),
        (7, "prompts is 7"),
        ([1, 2, 3], "a prompt is 1"),
        (["text"], "a prompt is 'text'"),
        ([[1, 1.5]], r"a prompt holds (1.0|1.5)"),
        ([["7"]], "a prompt holds '7'"),
        ([[True, False]], "a prompt holds True"),
        ([[[1, 2]]], r"a prompt holds \[1, 2\]"),
        ([[[1, 2], [3]]], r"a prompt holds \[1, 2\]"),
        ([[1, [2]]], r"a prompt holds \[2\]"),
        ([[2**70]], "a prompt has token ids outside|a prompt holds"),
        ([np.array([1.0])], "a prompt holds"),
        ([[]], "a prompt is empty"),
        ([None], "a prompt is None"),
    ],
)
def test_prompts_that_are_none_are_named(engine, prompts, message):
    with pytest.raises(BadPrompt, match=message):
        engine.generate(prompts, FREE)


@pytest.mark.parametrize("candidates", [0, 2.5, "3", True])
def test_a_wrong_number_of_candidates_is_named(engine, candidates):
    with pytest.raises(BadPrompt, match="num_candidates is"):
        engine.generate(PROMPTS, FREE, candidates)


def test_sampling_parameters_of_another_type_are_named(engine):
    with pytest.raises(BadSampling, match="Give SamplingParams"):
        engine.generate(PROMPTS, [{"n": 2}] * 3)
    with pytest.raises(BadPrompt, match="sampling_params is 3"):
        engine.generate(PROMPTS, 3)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_a_completion_ends_where_the_model_ends_a_text(tmp_path, backend):
    """One id or several, from the checkpoint; `ignore_eos` goes on as if there were none."""
    free = dataclasses.replace(FREE, ignore_eos=True)
    plain = wild("llama")
    whole = Engine(plain, capacity=20, backend=backend).generate(PROMPTS, free)
    one, other = whole[0][0].tokens[4], whole[1][1].tokens[2]
    folder = save_decoder(wild("llama", eos_token_id=one), tmp_path / "one")
    several = save_decoder(wild("llama", eos_token_id=one), tmp_path / "several")
    (several / "generation_config.json").write_text(f'{{"eos_token_id": [{one}, {other}]}}')
    for path, ends in ((folder, {one}), (several, {one, other})):
        engine = Engine(load_decoder(path), capacity=20, backend=backend)
        assert tokens_of(engine.generate(PROMPTS, free)) == tokens_of(whole)
        for row, full in zip(engine.generate(PROMPTS, FREE), whole, strict=True):
            for short, long in zip(row, full, strict=True):
                at = next((n for n, token in enumerate(long.tokens) if token in ends), None)
                assert short.tokens == long.tokens[: None if at is None else at + 1]
                assert short.finish_reason == ("length" if at is None else "stop")
                assert short.stop_reason == (None if at is None else long.tokens[at])


def test_a_drawn_seed_is_recorded_and_gives_the_same_again(engine):
    params = dataclasses.replace(FREE, seed=None)
    found = engine.generate(PROMPTS, params)
    seeds = [{c.seed for c in row} for row in found]
    assert [len(row) for row in seeds] == [1, 1, 1]
    assert len(set.union(*seeds)) == 3
    again = [dataclasses.replace(FREE, seed=min(row)) for row in seeds]
    assert engine.generate(PROMPTS, again) == found
    assert {c.seed for row in engine.generate(PROMPTS, FREE) for c in row} == {5}


def test_streamed_text_has_a_stop_tokens_text_beside_stop_strings(engine):
    whole = engine.generate(PROMPTS, FREE)
    stop = whole[0][1].tokens[5]
    params = dataclasses.replace(FREE, stop=("never reached",), stop_token_ids=(stop,))
    expected = engine.generate(PROMPTS, params)
    got = {}
    for chunk in engine.stream(PROMPTS, params):
        key = chunk.prompt, chunk.candidate
        got[key] = got.get(key, "") + chunk.text
    for (prompt, candidate), text in got.items():
        one = expected[prompt][candidate]
        assert text == one.text == letters(one.tokens)
    assert expected[0][1].tokens[-1] == stop
