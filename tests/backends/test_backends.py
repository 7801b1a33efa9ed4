"""Every backend on every architecture: its steps are one pass of the decoder, its rows its own."""

import dataclasses

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.backends.select import Unsupported
from ember.cache.contiguous import ContiguousCache
from ember.engine.engine import Engine
from tests.backends.steps import BACKENDS, add, backend_of, force, step_through
from tests.tiny import ARCHITECTURES, draw, wild

PAIRS = [(b, a) for b in BACKENDS for a in ARCHITECTURES]
everywhere = pytest.mark.parametrize(("backend", "architecture"), PAIRS)
FREE = SamplingParams(max_tokens=7, temperature=1.0, seed=5)
PROMPTS = [row[:n].tolist() for row, n in zip(draw(5, 12), (3, 12, 1, 7, 7), strict=True)]


@everywhere
@pytest.mark.parametrize("rows", [1, 3])
@torch.inference_mode()
def test_steps_equal_one_pass_of_the_decoder(backend, architecture, rows):
    decoder, tokens = wild(architecture), draw(rows, 20)
    expected = decoder.logits(decoder(tokens))[:, 4:].transpose(0, 1)
    found = step_through(backend_of(backend, decoder), tokens, 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@everywhere
@torch.inference_mode()
def test_rows_that_join_and_leave_leave_the_others_alone(backend, architecture):
    """Candidates of two prompts; the first row ends, and another prompt's joins in its place."""
    decoder, tokens = wild(architecture), draw(4, 16)
    made = backend_of(backend, decoder)
    histories = []

    def join(row, prompt, count=1):
        add(made, tokens[row, :prompt], count)
        histories.extend([tokens[row, :prompt]] for _ in range(count))

    def step(at):
        new = torch.arange(len(histories)) * 7 + at
        found = force(made, new)
        for history, token, logits in zip(histories, new, found, strict=True):
            history.append(token[None])
            truth = decoder.logits(decoder(torch.cat(history)[None]))[0, -1]
            torch.testing.assert_close(logits, truth, atol=1e-4, rtol=0)

    join(0, 4, 2)
    step(1)
    join(1, 9)
    step(2)
    step(3)
    made.leave([(2, 0)], 2)  # the last row takes the first one's place
    histories[0] = histories.pop()
    step(4)
    join(2, 6, 2)
    step(5)


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.inference_mode()
def test_steps_in_other_formats_follow_the_decoder(backend, architecture, dtype):
    if backend == "compiled" and dtype != torch.bfloat16:
        with pytest.raises(Unsupported, match=f"no compiled code for {dtype}"):
            backend_of(backend, wild(architecture, dtype))
        return
    decoder, tokens = wild(architecture, dtype), draw(2, 12)
    exact = wild(architecture, dtype).to(torch.float64)
    expected = exact.logits(exact(tokens))[:, 4:].transpose(0, 1)
    found = step_through(backend_of(backend, decoder), tokens, 5)
    assert found.dtype == dtype
    error = (found.double() - expected).norm() / expected.norm()
    assert error < {torch.float64: 1e-6, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]


def completions(decoder, prompts, params, **options):
    return Engine(decoder, capacity=24, **options).generate(prompts, params)


@everywhere
@torch.inference_mode()
def test_every_prompt_has_its_own_number_of_candidates_and_parameters(backend, architecture):
    """What a plain loop over the decoder samples, whatever runs beside it, in any number of rows
    and within little memory."""
    decoder = wild(architecture)
    params = [dataclasses.replace(FREE, n=n, max_tokens=3 + n) for n in (3, 1, 4, 2, 1)]
    token = decoder.arch.kv_bytes_per_token(4)
    seen = []
    for rows, memory in ((None, None), (3, None), (5, 200 * token)):
        engine = Engine(decoder, capacity=24, backend=backend, max_rows=rows, cache_bytes=memory)
        found = engine.generate(PROMPTS, params)
        stats = engine.last_stats
        assert engine.backend.name == backend
        assert [len(row) for row in found] == [3, 1, 4, 2, 1]
        assert stats.slots <= (rows or 11)
        assert max(batch.rows for batch in stats.batches) <= (rows or 11)
        if memory:
            assert stats.peak_kv_bytes <= memory
            assert stats.reserved_kv_bytes <= memory
        for prompt, wanted, row in zip(PROMPTS, params, found, strict=True):
            for completion in row:
                assert len(completion.tokens) == wanted.max_tokens
                ids = torch.tensor([prompt + list(completion.tokens)])
                logits = decoder.logits(decoder(ids))[0, len(prompt) - 1 : -1].float()
                at = torch.tensor(completion.tokens)[:, None]
                truth = logits.log_softmax(-1).gather(1, at)[:, 0].tolist()
                assert completion.raw_logprobs == pytest.approx(truth, abs=1e-4)
        seen.append([[c.tokens for c in row] for row in found])
    assert seen[0] == seen[1] == seen[2]


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariant_is_to_the_last_bit(backend, architecture, dtype):
    """Alone or with others of other lengths and numbers, in reverse, in few rows or many."""
    decoder = wild(architecture, dtype)
    options = {"backend": backend, "batch_invariant": True}
    params = dataclasses.replace(FREE, n=3, top_p=0.95, temperature=0.9)
    together = completions(decoder, PROMPTS, params, **options)
    assert completions(decoder, PROMPTS, params, max_rows=2, **options) == together
    assert completions(decoder, PROMPTS, params, max_rows=7, **options) == together
    assert completions(decoder, PROMPTS[::-1], params, **options) == together[::-1]
    for prompt, expected in zip(PROMPTS, together, strict=True):
        alone = dataclasses.replace(params, n=1)
        assert completions(decoder, [prompt], alone, **options) == [expected[:1]]


@torch.inference_mode()
def test_without_the_promise_the_eager_backend_runs_equal_rows_together():
    """And the promise costs: rows together are other products, with other last bits."""
    decoder = wild("qwen3", hidden_size=96, intermediate_size=200)
    seen = []
    for invariant in (False, True):
        calls = []
        made = backend_of("eager", decoder, batch_invariant=invariant)
        step_through(made, draw(4, 8), 5)
        original = decoder.forward

        def counted(*args, _calls=calls, _original=original, **options):
            _calls.append(len(args[0]))
            return _original(*args, **options)

        decoder.forward = counted
        made.advance()
        decoder.forward = original
        seen.append(calls)
    assert seen == [[4], [1, 1, 1, 1]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_machine_without_a_compiler_decodes_all_the_same(architecture, monkeypatch):
    from ember.backends import select

    expected = completions(wild(architecture), PROMPTS, FREE)
    monkeypatch.setattr(select, "why_no_code", lambda dtype: "no C compiler")
    engine = Engine(wild(architecture), capacity=24)
    found = engine.generate(PROMPTS, FREE)
    assert engine.backend.name == "eager"
    for row, other in zip(found, expected, strict=True):
        assert [c.tokens for c in row] == [c.tokens for c in other]


@torch.inference_mode()
def test_eager_rows_hold_what_the_decoder_keeps():
    """A copy of the prompt's KV, then the row's own."""
    decoder, tokens = wild("gpt_neox"), draw(2, 10)
    made = backend_of("eager", decoder)
    step_through(made, tokens, 4)
    truth = ContiguousCache(decoder.arch, 2, 10)
    decoder(tokens, cache=truth)
    torch.testing.assert_close(made.cache.rows[:, :, :2, :, :10], truth.kv, atol=1e-4, rtol=0)
