"""Prompts of which all but the last token is kept: their rows run it, and sample what they would
have sampled; what that costs is counted."""

import dataclasses
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.forward import Forward
from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.cache.slotted import BLOCK, Run, SlottedCache
from ember.engine.engine import Engine
from ember.engine.prefill import PlainPrefill, PrefixPrefill
from tests.tiny import ARCHITECTURES, decoder_of, tiny, wild

ARCH = tiny(num_layers=2, vocab_size=32, tie_embeddings=True)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11], [12], [3, 2, 1, 0, 5, 6, 7], [8, 8]]
FREE = SamplingParams(max_tokens=9, temperature=1.0, seed=5, logprobs=2)
CASES = [(backend, model_type) for backend in ("compiled", "eager") for model_type in ARCHITECTURES]


class Kept(PlainPrefill):
    """Leaves the last token of chosen prompts to their rows."""

    def __init__(self, chosen):
        self.chosen = chosen

    def fill(self, prompt, cache, forward, phase):
        if tuple(prompt) not in self.chosen or len(prompt) == 1:
            return super().fill(prompt, cache, forward, phase)
        forward(torch.tensor([prompt[:-1]]), cache)
        return None, len(prompt) - 1


def same(mine, theirs) -> None:
    for one, other in zip(chain(*mine), chain(*theirs), strict=True):
        assert one.tokens == other.tokens
        for name in ("logprobs", "raw_logprobs"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)
        assert [[token for token, _ in step] for step in one.alternatives] == [
            [token for token, _ in step] for step in other.alternatives
        ]


@pytest.mark.parametrize(("backend", "model_type"), CASES)
def test_a_prompt_that_comes_back_runs_no_forward_and_samples_the_same(
    backend, model_type, monkeypatch
):
    decoder = wild(model_type, max_positions=64)
    prefill = PrefixPrefill(RadixCache(1 << 24))
    engine = Engine(decoder, capacity=16, prefill=prefill, backend=backend, max_rows=4)
    plain = Engine(decoder, capacity=16, backend=backend).generate(PROMPTS, FREE, 3)
    same(engine.generate(PROMPTS, FREE, 3), plain)
    assert engine.last_stats.kept_prompts == 0
    calls, real = [], Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda *a: calls.append(a) or real(*a))
    found = engine.generate(PROMPTS, FREE, 3)
    same(found, plain)
    stats = engine.last_stats
    assert len(calls) == 1  # the prompt of one token
    assert (stats.kept_prompts, stats.prefills) == (len(PROMPTS) - 1, len(PROMPTS))
    assert [row[0].cached_tokens for row in found] == [len(prompt) - 1 for prompt in PROMPTS]
    assert stats.cached_tokens == sum(len(prompt) - 1 for prompt in PROMPTS)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_kept_prompts_beside_others_change_no_completion(backend, data):
    """Whatever is kept, in whatever company, with few rows, little memory and early ends."""
    decoder = decoder_of(ARCH)
    numbers = data.draw(st.permutations(range(len(PROMPTS))))[: data.draw(st.integers(1, 6))]
    prompts = [PROMPTS[number] for number in numbers]
    counts = [data.draw(st.integers(1, 4)) for _ in prompts]
    lengths = [data.draw(st.integers(1, 9)) for _ in prompts]
    stop = data.draw(st.sampled_from([(), (3, 17)]))
    params = [
        dataclasses.replace(FREE, n=n, max_tokens=length, stop_token_ids=stop)
        for n, length in zip(counts, lengths, strict=True)
    ]
    chosen = {tuple(prompt) for prompt in prompts if data.draw(st.booleans())}
    rows = data.draw(st.integers(1, 7))
    tokens = data.draw(st.sampled_from([90, 300]))
    options = {"capacity": 16, "batch_invariant": True, "backend": backend}
    engine = Engine(
        decoder,
        **options,
        prefill=Kept(chosen),
        max_rows=rows,
        cache_bytes=max(rows * 64 + 8, tokens) * ARCH.kv_bytes_per_token(4),
    )
    same(engine.generate(prompts, params), Engine(decoder, **options).generate(prompts, params))
    stats = engine.last_stats
    assert stats.kept_prompts == sum(len(prompt) > 1 for prompt in chosen)
    assert stats.generated_tokens + stats.discarded_tokens <= sum(
        n * length for n, length in zip(counts, lengths, strict=True)
    )
    assert stats.peak_kv_bytes <= engine.cache_bytes


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_the_step_of_the_last_token_is_counted_with_what_it_reads(backend):
    decoder = decoder_of(ARCH)
    engine = Engine(
        decoder, capacity=16, backend=backend, max_rows=4, prefill=Kept({(4, 5, 6, 7, 8)})
    )
    prompts, token = [PROMPTS[1], PROMPTS[2]], ARCH.kv_bytes_per_token(4)
    params = [dataclasses.replace(FREE, n=2, max_tokens=3) for _ in prompts]
    engine.generate(prompts, params)
    stats = engine.last_stats
    # The first prompt's rows run its last token, then all run the first two of three tokens.
    assert [(b.rows, b.prompts, b.steps) for b in stats.batches] == [(2, 1, 1), (4, 2, 2)]
    assert [b.own_tokens for b in stats.batches] == [2 * 1, 2 * (2 + 3) + 2 * (1 + 2)]
    shared = 4 if backend == "compiled" else 2 * 4
    rest = 4 + 3 if backend == "compiled" else 2 * (4 + 3)
    assert [b.prompt_tokens for b in stats.batches] == [shared, rest]
    assert stats.steps == 3
    assert sum(b.rows * b.steps for b in stats.batches) == 2 + 4 * 2
    if backend == "compiled":  # 4 + 3 tokens of prompts
        assert stats.peak_kv_bytes == (4 + 3 + 4 * engine.backend.cache.row_tokens) * token


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_a_row_has_room_for_the_last_token_and_all_that_it_may_sample(backend):
    decoder = decoder_of(ARCH)
    params = dataclasses.replace(FREE, max_tokens=BLOCK, n=2)
    engine = Engine(decoder, capacity=80, backend=backend, prefill=Kept({tuple(PROMPTS[1])}))
    plain = Engine(decoder, capacity=80, backend=backend)
    same(engine.generate(PROMPTS[:2], params), plain.generate(PROMPTS[:2], params))
    if backend == "compiled":
        assert engine.backend.cache.row_tokens == BLOCK


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_a_stream_of_kept_prompts_and_one_that_is_cancelled(backend):
    decoder = decoder_of(ARCH)
    kept = {tuple(prompt) for prompt in PROMPTS[:3]}
    engine = Engine(decoder, capacity=16, backend=backend, prefill=Kept(kept), max_rows=5)
    expected = Engine(decoder, capacity=16, backend=backend).generate(PROMPTS, FREE, 2)
    stream, found = engine.stream(PROMPTS, FREE, 2), {}
    for chunk in stream:
        found.setdefault((chunk.prompt, chunk.candidate), []).extend(chunk.tokens)
        if chunk.prompt == 1:
            stream.cancel(1)
    for number, row in enumerate(expected):
        for candidate, one in enumerate(row):
            got = tuple(found.get((number, candidate), ()))
            assert got == one.tokens[: len(got)]
            assert len(got) < 9 if number == 1 else got == one.tokens
    assert {one.finish_reason for one in stream.completions[1]} == {"cancelled"}
    engine.generate(PROMPTS, FREE)  # nothing stayed behind
    assert not engine.backend.cache._runs


def test_a_run_is_trimmed_and_what_it_gives_back_is_free():
    cache = SlottedCache(ARCH, prompt_tokens=10, rows=1, row_tokens=4)
    run = cache.trim(cache.reserve(10), 7)
    assert run == Run(0, 7)
    assert cache.reserve(4) is None
    assert cache.reserve(3) == Run(7, 3)
    cache.free(run)
    assert cache.reserve(7) == Run(0, 7)
