"""Refilled rows: the same completions under other batch compositions; streams, stops, errors."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.sampling import BadSampling, SamplingParams
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine, EngineBusy
from ember.engine.prefill import PrefixPrefill
from ember.engine.requests import BadPrompt
from ember.engine.scheduler import NotFinite, compact
from ember.measure.clock import PhaseClock
from ember.measure.memory import NotEnoughMemory
from tests.tiny import decoder_of, tiny

ARCH = tiny(num_layers=2, vocab_size=32, tie_embeddings=True)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11], [12], [3, 2, 1, 0, 5, 6, 7], [8, 8]]
FREE = SamplingParams(n=3, max_tokens=9, temperature=1.0, seed=5)


def lively():
    return decoder_of(ARCH)


@pytest.fixture(scope="module")
def decoder():
    return lively()


def letters(tokens) -> str:
    return "".join(chr(97 + token) for token in tokens)


def tokens_of(completions):
    return [[c.tokens for c in row] for row in completions]


@given(st.lists(st.integers(0, 9), unique=True, max_size=9), st.integers(10, 14))
def test_compacting_keeps_every_row_that_stays(leaving, size):
    rows, memory = list(range(size)), list(range(size))
    moves = compact(rows, leaving)
    for source, target in moves:
        memory[target] = memory[source]
    assert sorted(rows) == [row for row in range(size) if row not in leaving]
    assert memory[: len(rows)] == rows


batches = st.lists(
    st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, 4), st.integers(1, 9)),
    min_size=1,
    max_size=6,
    unique_by=lambda request: request[0],
)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@settings(max_examples=20, deadline=None)
@given(batches, st.integers(1, 7), st.sampled_from([70, 90, 300]), st.booleans())
def test_other_rows_and_memory_change_no_completion(backend, decoder, batch, rows, tokens, cuts):
    """Few rows and little memory make prompts wait and share in turn."""
    cut = {"top_p": 0.9, "top_k": 20, "min_p": 0.01} if cuts else {}
    options = {"capacity": 16, "batch_invariant": True, "backend": backend}
    whole = Engine(decoder, **options)
    small = Engine(
        decoder,
        **options,
        max_rows=rows,
        cache_bytes=max(rows * 64 + 8, tokens) * ARCH.kv_bytes_per_token(4),
    )
    prompts = [PROMPTS[p] for p, _, _ in batch]
    params = [dataclasses.replace(FREE, n=n, max_tokens=length, **cut) for _, n, length in batch]
    together = small.generate(prompts, params)
    stats = small.last_stats
    assert stats.slots <= rows
    assert stats.prefills == len(prompts)
    assert stats.generated_tokens == sum(n * length for _, n, length in batch)
    assert 0 < stats.occupancy <= 1 or stats.steps == 0
    assert stats.peak_kv_bytes <= small.cache_bytes
    for prompt, wanted, found in zip(prompts, params, together, strict=True):
        [alone] = whole.generate([prompt], wanted)
        assert tokens_of([found]) == tokens_of([alone])
        assert [c.logprobs for c in found] == [c.logprobs for c in alone]  # to the last bit


def test_without_the_promise_of_bits_tokens_are_the_same(decoder):
    engine = Engine(decoder, capacity=16)
    together = engine.generate(PROMPTS, FREE)
    for prompt, row in zip(PROMPTS, together, strict=True):
        [[alone]] = engine.generate([prompt], FREE, 1)
        assert alone.tokens == row[0].tokens
        assert alone.raw_logprobs == pytest.approx(row[0].raw_logprobs, abs=1e-5)
    again = Engine(decoder, capacity=16).generate(PROMPTS, FREE)
    assert again == together  # log-probabilities too


def test_steps_are_counted_with_what_they_read(decoder):
    engine = Engine(decoder, capacity=16, max_rows=4)
    engine.generate(PROMPTS[:2], FREE, 3)
    stats = engine.last_stats
    # All of the first prompt and one of the second; its other two are left for later.
    assert [(b.rows, b.prompts, b.steps) for b in stats.batches] == [(4, 2, 8), (2, 1, 8)]
    assert [b.prompt_tokens for b in stats.batches] == [8, 5]
    assert [b.own_tokens for b in stats.batches] == [4 * 36, 2 * 36]  # 1 + … + 8 a row
    assert stats.as_dict()["tokens_per_s"] > 0
    assert all(b.ms > 0 for b in stats.batches)


def test_a_calls_time_is_told_by_phase_whoever_has_the_clock(decoder):
    clock, engine = PhaseClock("cpu"), Engine(decoder, capacity=16)
    for told in (None, clock, clock):
        before = clock.times_ms()
        engine.generate(PROMPTS, FREE, clock=told)
        stats = engine.last_stats
        times = (stats.prefill_ms, stats.decode_ms, stats.sampling_ms, stats.transfer_ms)
        assert min(times) > 0
        assert (stats.correction_ms, stats.lookup_ms, stats.store_ms) == (0, 0, 0)
        assert sum(times) < 1e3 * stats.seconds
        assert stats.decode_ms + stats.sampling_ms <= sum(b.ms for b in stats.batches)
        if told is not None:
            passed = clock.times_ms()["prefill"] - before.get("prefill", 0)
            assert stats.prefill_ms == pytest.approx(passed)


def test_one_row_at_a_time(decoder):
    engine = Engine(decoder, capacity=16, max_rows=1)
    found = engine.generate(PROMPTS[:2], FREE)
    assert {b.rows for b in engine.last_stats.batches} == {1}
    assert tokens_of(found) == tokens_of(Engine(decoder, capacity=16).generate(PROMPTS[:2], FREE))


def test_streamed_chunks_make_the_completions(decoder):
    engine = Engine(decoder, capacity=16, max_rows=4, detokenize=letters)
    expected = engine.generate(PROMPTS, FREE)
    got = {}
    for chunk in engine.stream(PROMPTS, FREE):
        got.setdefault((chunk.prompt, chunk.candidate), []).append(chunk)
    for (p, c), chunks in got.items():
        whole = expected[p][c]
        assert sum((chunk.tokens for chunk in chunks), ()) == whole.tokens
        assert sum((chunk.raw_logprobs for chunk in chunks), ()) == whole.raw_logprobs
        assert "".join(chunk.text for chunk in chunks) == whole.text == letters(whole.tokens)
        assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].finish_reason == "length"
        assert len(chunks) == 9  # on the CPU they come one by one
    assert len(got) == 18


def test_a_stop_string_ends_a_row_across_tokens(decoder):
    engine = Engine(decoder, capacity=16, detokenize=letters)
    whole = engine.generate(PROMPTS, FREE)
    stop = letters(whole[1][2].tokens[3:6])
    params = dataclasses.replace(FREE, stop=stop)
    for row, cut in zip(whole, engine.generate(PROMPTS, params), strict=True):
        for full, short in zip(row, cut, strict=True):
            text = letters(full.tokens)
            at = text.find(stop)
            assert short.text == (text if at < 0 else text[:at])
            assert letters(short.tokens) == (text if at < 0 else text[: at + 3])
            assert short.finish_reason == ("length" if at < 0 else "stop")
            assert short.stop_reason == (None if at < 0 else stop)
    assert any(
        c.finish_reason == "stop" for c in itertools.chain(*engine.generate(PROMPTS, params))
    )
    never = engine.generate(PROMPTS, dataclasses.replace(FREE, stop=("never reached",)))
    assert tokens_of(never) == tokens_of(whole)
    parts = [c for c in engine.stream(PROMPTS, params) if (c.prompt, c.candidate) == (1, 2)]
    assert "".join(c.text for c in parts) == letters(whole[1][2].tokens[:3])


def test_cancelled_prompts_keep_what_they_have_and_others_run_on(decoder):
    engine = Engine(decoder, capacity=16, max_rows=4)
    whole = engine.generate(PROMPTS, FREE)
    stream = engine.stream(PROMPTS, FREE)
    for number, chunk in enumerate(stream):
        if number == 8:
            stream.cancel(0)
            stream.cancel(5)  # not yet begun
        last = chunk
    assert last.finish_reason == "length"
    for p, (row, full) in enumerate(zip(stream.completions, whole, strict=True)):
        for short, long in zip(row, full, strict=True):
            assert short.finish_reason == ("cancelled" if p in (0, 5) else "length")
            assert short.tokens == long.tokens[: len(short.tokens)]
    assert 0 < len(stream.completions[0][0].tokens) < 9
    assert stream.completions[5][0].tokens == ()
    stream = engine.stream(PROMPTS, FREE)
    next(iter(stream))
    stream.cancel()
    assert tokens_of(engine_after(engine, stream)) == tokens_of(whole)


def engine_after(engine, stream):
    """The engine serves again once a stream is closed."""
    chunks = iter(engine.stream(PROMPTS, FREE))
    next(chunks)
    with pytest.raises(EngineBusy, match="close its stream"):
        engine.generate(PROMPTS, FREE)
    chunks.close()
    return engine.generate(PROMPTS, FREE)


def test_every_token_names_its_weights(decoder):
    engine = Engine(decoder, capacity=16, max_rows=2)
    stream = engine.stream([PROMPTS[0]], FREE, 1)
    for number, _ in enumerate(stream):
        if number == 3:
            engine.set_weights_version("next")
    [[completion]] = stream.completions
    assert completion.versions == ("base",) * 4 + ("next",) * 5


@pytest.mark.parametrize("candidates", [1, 3])
def test_alternatives_are_the_likeliest_tokens(decoder, candidates):
    params = dataclasses.replace(FREE, temperature=0.7, logprobs=3)
    plain = dataclasses.replace(FREE, temperature=0.7)
    found = Engine(decoder, capacity=16).generate(PROMPTS[:2], [params, plain], candidates)
    assert all(c.alternatives is None for c in found[1])
    for c in found[0]:
        ids = torch.tensor([PROMPTS[0] + list(c.tokens)])
        with torch.inference_mode():
            raw = decoder.logits(decoder(ids))[0, len(PROMPTS[0]) - 1 : -1].log_softmax(-1)
        values, best = raw.topk(3)
        assert [[token for token, _ in step] for step in c.alternatives] == best.tolist()
        ours = torch.tensor([[value for _, value in step] for step in c.alternatives])
        torch.testing.assert_close(ours, values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("candidates", [1, 2])
def test_broken_weights_are_an_error_and_repaired_ones_serve(candidates):
    decoder = lively()
    engine = Engine(decoder, capacity=16, prefill=PrefixPrefill(RadixCache(10**6)))
    expected = engine.generate(PROMPTS, FREE, candidates)
    weight = decoder.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    engine.set_weights_version("broken")
    with pytest.raises(NotFinite, match=r"'broken'(.|\n)*Check the weights"):
        engine.generate(PROMPTS, FREE, candidates)
    assert engine.prefill.cache.stats.bytes == 0
    with torch.no_grad():
        weight.copy_(kept)
    assert tokens_of(engine.generate(PROMPTS, FREE, candidates)) == tokens_of(expected)


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        ([[1]], [FREE, FREE], BadPrompt, "2 sampling parameters for 1"),
        ([[1]], dataclasses.replace(FREE, stop="x"), BadSampling, "detokenize="),
        ([[1] * 8], FREE, BadPrompt, "capacity of 16"),
        ([[]], FREE, BadPrompt, "empty"),
    ],
)
def test_bad_requests_leave_the_engine_as_it_was(decoder, prompts, params, error, message):
    engine = Engine(decoder, capacity=16)
    expected = engine.generate(PROMPTS, FREE)
    with pytest.raises(error, match=message):
        engine.generate(prompts, params)
    assert engine.generate(PROMPTS, FREE) == expected


def test_a_prompt_beyond_the_models_context_is_refused(decoder):
    engine = Engine(decoder, capacity=200)
    with pytest.raises(BadPrompt, match="context of 128 tokens"):
        engine.generate([[1] * 120], FREE)


def test_too_little_memory_for_one_row_is_an_error(decoder):
    engine = Engine(decoder, capacity=16, cache_bytes=1000)
    with pytest.raises(NotEnoughMemory, match="cache_bytes"):
        engine.generate(PROMPTS, FREE)
