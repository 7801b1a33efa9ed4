"""The compiled CPU step: what it must share with the decoder, and what it promises beyond that."""

import pytest
import torch

from ember.backends.compiled.native_step import NativeStep
from ember.backends.sampling import SamplingParams
from ember.backends.threads import restored_threads
from ember.cache.contiguous import ContiguousCache
from ember.engine import native_step
from ember.engine.engine import Engine
from ember.engine.host_step import HostStep
from ember.engine.step import DecodeStep, swapped_tables
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder

SIZES = {
    "hidden_size": 56,  # not a multiple of a vector's 16
    "intermediate_size": 72,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 24,
    "vocab_size": 67,
    "max_positions": 128,
}
SHAPES = {
    "qwen3": {"model_type": "qwen3", "tie_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "llama-mlp-bias": {"model_type": "llama", "mlp_bias": True, "o_bias": True},
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path_factory.getbasetemp() / "native"))
    native_step._library.cache_clear()
    yield
    native_step._library.cache_clear()


def make(shape: str, dtype=torch.float32):
    decoder = random_decoder(Architecture.make(**SIZES | SHAPES[shape]), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return decoder.to(dtype)


def draw(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(67, (batch, tokens), generator=torch.Generator().manual_seed(2))


def native(step: DecodeStep) -> NativeStep:
    assert isinstance(step._step, NativeStep)
    return step._step


@torch.inference_mode()
def generate_logits(decoder, tokens, prefilled=5, threads=1):
    """Logits (T - prefilled, B, V) of single steps behind a prefill done row by row."""
    cache = ContiguousCache(decoder.arch, len(tokens), 40, dtype=decoder.norm.weight.dtype)
    for row in range(len(tokens)):
        decoder(tokens[row : row + 1, :prefilled], cache=cache.rows(row, row + 1))
    cache.share(len(tokens), prefilled)
    step = DecodeStep(decoder, cache)
    with restored_threads():
        torch.set_num_threads(threads)
        found = [step(tokens[:, t]).clone() for t in range(prefilled, tokens.shape[1])]
    return torch.stack(found), cache


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 6])
@torch.inference_mode()
def test_steps_equal_the_eager_decoder(shape, batch):
    decoder, tokens = make(shape), draw(batch, 30)
    truth = ContiguousCache(decoder.arch, batch, 40)
    expected = decoder.logits(decoder(tokens, cache=truth))[:, 5:].transpose(0, 1)
    found, cache = generate_logits(decoder, tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for layer in range(2):
        torch.testing.assert_close(cache.read(layer), truth.read(layer), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_bfloat16_weights_follow_the_same_weights_in_float32():
    """Closer than the decoder in bfloat16 is: only weights and cache are rounded."""
    decoder, tokens = make("qwen3", torch.bfloat16), draw(3, 20)
    exact = make("qwen3", torch.bfloat16).float()
    expected = exact.logits(exact(tokens))[:, 5:].transpose(0, 1)
    eager = decoder.logits(decoder(tokens))[:, 5:].transpose(0, 1)
    found, _ = generate_logits(decoder, tokens)

    def error(logits):
        return (logits.float() - expected).norm() / expected.norm()

    assert found.dtype == torch.bfloat16
    assert error(found) < min(0.02, error(eager))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_the_batch_nor_threads_change_a_bit(dtype):
    decoder, tokens = make("qwen3", dtype), draw(7, 20)
    whole, _ = generate_logits(decoder, tokens)
    assert torch.equal(generate_logits(decoder, tokens, threads=2)[0], whole)
    for rows in ([0], [3, 4], [6, 0, 2], [1, 2, 3, 4, 5]):
        found, _ = generate_logits(decoder, tokens[rows])
        assert torch.equal(found, whole[:, rows])


@torch.inference_mode()
def test_rows_of_different_length_read_shared_prompts_in_place():
    """Rows 0 to 2 share a prompt of 9 tokens, row 3 has one of 5; row 2 goes twice as fast."""
    decoder = make("qwen2")
    arch, drawn, own = decoder.arch, draw(2, 9), draw(4, 12)
    prompts = [drawn[:1], drawn[1:, :5]]
    arena = torch.randn(2, 2, arch.num_kv_heads, 40, arch.head_dim)  # beside them is not zero
    for prompt, start in zip(prompts, (3, 20), strict=True):
        cache = ContiguousCache(arch, 1, 9)
        decoder(prompt, cache=cache)
        arena[:, :, :, start : start + prompt.shape[1]] = cache.segment(0, 0, prompt.shape[1])
    rows = torch.randn(2, 2, 6, arch.num_kv_heads, 12, arch.head_dim)
    tables = swapped_tables(arch, 40, torch.float32, torch.device("cpu"))
    step = NativeStep(arch, DecodeStep(decoder, cache).weights, rows, *tables, prompts=arena)
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


def test_a_token_outside_the_vocabulary_is_refused_before_memory_is_read():
    decoder = make("qwen3")
    step = DecodeStep(decoder, ContiguousCache(decoder.arch, 1, 8))
    for token in (-1, 67):
        with pytest.raises(IndexError, match="is not in 0 … 66"):
            step(torch.tensor([token]))


def test_nan_weights_give_nan_logits():
    decoder, tokens = make("qwen3"), draw(1, 8)
    with torch.no_grad():
        decoder.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    found, _ = generate_logits(decoder, tokens)
    assert found.isnan().all()


def test_without_a_compiler_the_other_step_serves(monkeypatch, caplog):
    monkeypatch.setenv("CC", "/no/such/compiler")
    decoder = make("qwen3")
    cache = ContiguousCache(decoder.arch, 1, 8)
    with caplog.at_level("INFO"):
        step = DecodeStep(decoder, cache)
    assert isinstance(step._step, HostStep)
    assert "/no/such/compiler" in caplog.text


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "cc -DT=nonsense -Dfloat=+")
    reason = native_step.why_not(make("qwen3").arch, torch.zeros(1))
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


def test_what_it_does_not_serve_has_a_reason():
    arch = make("qwen3").arch
    assert "torch.float16" in native_step.why_not(arch, torch.zeros(1, dtype=torch.float16))
    assert "not on the CPU" in native_step.why_not(arch, torch.zeros(1, device="meta"))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_the_step_without_a_compiler_equals_the_decoder(shape):
    decoder, tokens = make(shape), draw(3, 12)
    cache = ContiguousCache(decoder.arch, 3, 12)
    decoder(tokens[:, :5], cache=cache)
    step = DecodeStep(decoder, cache)
    tables = swapped_tables(decoder.arch, 12, torch.float32, cache.kv.device)
    step._step = HostStep(decoder.arch, step.weights, cache, *tables)
    expected = decoder.logits(decoder(tokens))
    for t in range(5, 12):
        torch.testing.assert_close(step(tokens[:, t]), expected[:, t], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rollout_is_the_same_to_the_last_bit_whatever_runs_beside_it(dtype):
    """Alone or with others, of other lengths, through few rows or many."""
    engine = Engine(make("qwen3", dtype), capacity=40)
    prompts = [draw(1, length)[0].tolist() for length in (9, 3, 12)]
    params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=10, seed=4)
    together = engine.generate(prompts, params, num_candidates=3)
    engine = Engine(make("qwen3", dtype), capacity=40, max_rows=2)
    assert engine.generate(prompts, params, num_candidates=3) == together
    for prompt, expected in zip(prompts, together, strict=True):
        [alone] = engine.generate([prompt], params, num_candidates=1)
        assert alone == expected[:1]
