"""The compiled CPU step: how it is built, and what it promises beyond equal logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.compiled import native_step
from ember.backends.compiled.native_step import NativeStep
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.backends.threads import restored_threads
from ember.cache.contiguous import ContiguousCache
from ember.engine.engine import Engine
from tests.backends.steps import backend_of, step_through
from tests.model.drawn import architectures
from tests.tiny import ARCHITECTURES, decoder_of, draw, wild

SIZES = {  # not multiples of a vector's 16
    "hidden_size": 56,
    "intermediate_size": 72,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 24,
}


def sizes_of(architecture: str) -> dict:
    return SIZES | ({"num_kv_heads": 6} if architecture == "gpt_neox" else {})


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path_factory.getbasetemp() / "native"))
    native_step._library.cache_clear()
    yield
    native_step._library.cache_clear()


def logits_of(decoder, tokens, threads: int = 1):
    """Logits (T - 4, B, V) of a prefill of 5 tokens row by row, and of single steps after it."""
    with restored_threads():
        torch.set_num_threads(threads)
        return step_through(backend_of("compiled", decoder, rows=7), tokens, 5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_bfloat16_weights_follow_the_same_weights_in_float32(architecture):
    """Closer than the decoder in bfloat16 is: only weights and cache are rounded."""
    sizes = sizes_of(architecture)
    decoder, tokens = wild(architecture, torch.bfloat16, **sizes), draw(3, 20)
    exact = wild(architecture, torch.bfloat16, **sizes).float()
    expected = exact.logits(exact(tokens))[:, 5:].transpose(0, 1)
    eager = decoder.logits(decoder(tokens))[:, 5:].transpose(0, 1)
    found = logits_of(decoder, tokens)[1:]

    def error(logits):
        return (logits.float() - expected).norm() / expected.norm()

    assert error(found) < min(0.04, error(eager))


@settings(deadline=None)  # the first example compiles
@given(arch=architectures(), seed=st.integers(0, 3))
@torch.inference_mode()
def test_any_combination_of_features_is_what_the_decoder_computes(arch, seed):
    decoder, tokens = decoder_of(arch, seed), draw(2, 12, vocabulary=31, seed=seed)
    cache = ContiguousCache(arch, 2, 12)
    step = NativeStep(arch, PackedDecoder(decoder), cache.kv, 12)
    found = torch.stack([step(tokens[:, at], at).clone() for at in range(12)], 1)
    exact = decoder.double()
    expected = exact.logits(exact(tokens))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_neither_the_batch_nor_threads_change_a_bit(dtype, architecture):
    decoder, tokens = wild(architecture, dtype, **sizes_of(architecture)), draw(7, 20)
    whole = logits_of(decoder, tokens)
    for rows in ([0], [3, 4], [6, 0, 2], [1, 2, 3, 4, 5]):
        assert torch.equal(logits_of(decoder, tokens[rows]), whole[:, rows])
    made = backend_of("compiled", decoder, rows=7)
    step_through(made, tokens[:, :9], 9)
    made.sample()
    steps = []
    for threads in (1, 2):
        with restored_threads():
            torch.set_num_threads(threads)
            made.advance()  # the same tokens at the same positions
        made._own[:7] -= 1
        steps.append(made.logits.clone())
    assert torch.equal(*steps)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3_text", "gpt_neox"])
@torch.inference_mode()
def test_rows_of_different_length_read_shared_prompts_in_place(architecture):
    """Rows 0 to 2 share a prompt of 9 tokens, row 3 has one of 5; row 2 goes twice as fast."""
    decoder = wild(architecture, **sizes_of(architecture))
    arch, drawn, own = decoder.arch, draw(2, 9), draw(4, 12, seed=5)
    prompts = [drawn[:1], drawn[1:, :5]]
    layers = arch.num_layers
    arena = torch.randn(layers, 2, arch.num_kv_heads, 40, arch.head_dim)  # beside them is not zero
    for prompt, start in zip(prompts, (3, 20), strict=True):
        cache = ContiguousCache(arch, 1, 9)
        decoder(prompt, cache=cache)
        arena[:, :, :, start : start + prompt.shape[1]] = cache.segment(0, 0, prompt.shape[1])
    rows = torch.randn(layers, 2, 6, arch.num_kv_heads, 12, arch.head_dim)
    step = NativeStep(arch, PackedDecoder(decoder), rows, 40, prompts=arena)
    starts, shared = torch.tensor([3, 3, 3, 20]), torch.tensor([9, 9, 9, 5])
    every = torch.arange(4)
    for t in range(6):
        for second in (0, 1):  # the others repeat their token
            at = torch.tensor([t, t, 2 * t + second, t])
            found = step.run(own[every, at], starts, shared, at)
    for row, length in enumerate((6, 6, 12, 6)):
        tokens = torch.cat([prompts[row == 3], own[row : row + 1, :length]], 1)
        expected = decoder.logits(decoder(tokens))[0, -1]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_what_has_left_the_window_is_not_read():
    """Of a prompt of 9 tokens and the row's own, a layer with a window of 5."""
    decoder = wild("gemma3_text", num_layers=1, sliding_layers=(0,))
    arch, drawn = decoder.arch, draw(1, 16)
    cache = ContiguousCache(arch, 1, 9)
    decoder(drawn[:, :9], cache=cache)
    arena = cache.kv[:, :, 0].clone()
    rows = torch.zeros(1, 2, 1, arch.num_kv_heads, 7, arch.head_dim)
    step = NativeStep(arch, PackedDecoder(decoder), rows, 16, prompts=arena)
    shared = torch.tensor([9])
    for own in range(7):
        oldest = 9 + own + 1 - 5
        arena[:, :, :, : min(oldest, 9)] = torch.nan
        rows[:, :, :, :, : max(oldest - 9, 0)] = torch.nan
        found = step.run(drawn[:, 9 + own], shared - 9, shared, torch.tensor([own]))
        expected = decoder.logits(decoder(drawn[:, : 10 + own]))[:, -1]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_token_outside_the_vocabulary_is_refused_before_memory_is_read():
    decoder = wild("qwen3", **SIZES)
    cache = ContiguousCache(decoder.arch, 1, 8)
    step = NativeStep(decoder.arch, PackedDecoder(decoder), cache.kv, 8)
    for token in (-1, 61):
        with pytest.raises(IndexError, match="is not in 0 … 60"):
            step(torch.tensor([token]), 0)


def test_nan_weights_give_nan_logits():
    decoder, tokens = wild("qwen3", **SIZES), draw(1, 8)
    with torch.no_grad():
        decoder.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    assert logits_of(decoder, tokens).isnan().all()


def test_a_compiler_that_is_not_there_is_named(monkeypatch, caplog):
    monkeypatch.setenv("CC", "/no/such/compiler")
    engine = Engine(wild("qwen3"), capacity=8)
    with caplog.at_level("INFO"):
        engine.generate([[1, 2]], SamplingParams(max_tokens=2))
    assert engine.backend.name == "eager"
    assert "/no/such/compiler" in caplog.text
    assert "/no/such/compiler" in engine.select(1).reasons["compiled"]


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "cc -DT=nonsense -Dfloat=+")
    reason = native_step.why_no_code(torch.float32)
    assert "cc failed" in reason
    assert "error" in reason
    assert list(tmp_path.iterdir()) == []


def test_the_code_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    made = native_step.build(torch.float32)
    stamp = made.stat().st_mtime_ns
    assert native_step.build(torch.float32) == made
    assert made.stat().st_mtime_ns == stamp
    assert native_step.build(torch.bfloat16) != made
