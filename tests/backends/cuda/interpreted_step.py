"""The whole step in kernels against the eager decoder, and the engine's loop on the device."""

import pytest
import torch

from ember.backends.cuda import attention, step
from ember.backends.cuda.backend import KernelBackend
from ember.backends.cuda.products import Plan
from ember.backends.cuda.step import FEW_ROWS
from ember.backends.forward import Forward
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.backends.select import Unsupported
from ember.cache.contiguous import ContiguousCache
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.model.rope import RopeScaling
from tests.backends.steps import backend_of, step_through
from tests.tiny import wild

SIZES = {
    "hidden_size": 72,
    "intermediate_size": 80,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "vocab_size": 67,
    "max_positions": 128,
}
SHAPES = {
    "qwen3-tied": {"model_type": "qwen3", "tie_embeddings": True, "num_layers": 2},
    "qwen3-bias": {"model_type": "qwen3", "qkv_bias": True, "o_bias": True},
    "qwen3-mha": {"model_type": "qwen3", "num_kv_heads": 2},
    "qwen2": {"model_type": "qwen2"},
    "llama": {"model_type": "llama", "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)},
    "llama-mlp-bias": {"model_type": "llama", "mlp_bias": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_layers": 2,
        "sliding_window": 3,
        "sliding_layers": (0,),
        "tie_embeddings": False,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "num_kv_heads": 2,
        "num_layers": 2,
        "head_dim": 40,
        "rope_fraction": 0.25,
    },
    "gpt_neox-80": {"model_type": "gpt_neox", "num_kv_heads": 2, "head_dim": 80},
    "gpt_neox-sequential": {
        "model_type": "gpt_neox",
        "num_kv_heads": 2,
        "parallel_residual": False,
        "rope_fraction": 0.5,
    },
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter's time goes with the number of programs, whatever their size."""
    monkeypatch.setattr(step, "matvec_plan", lambda k, **_: Plan(64, 32, 2, 1))
    monkeypatch.setattr(step, "skinny_plan", lambda k, *, gated: Plan(64, 32, 2, 2))
    monkeypatch.setattr(step, "MANY_ROWS", FEW_ROWS + 1)
    monkeypatch.setattr(step, "TALL_FROM", FEW_ROWS + 1)
    monkeypatch.setattr(step, "TALL", 8)
    monkeypatch.setattr(attention, "SHARED_PARTS", 1)
    monkeypatch.setattr(attention, "OWN_PARTS", 1)


def make(dtype=torch.float32, **fields):
    return wild(dtype=dtype, **SIZES | fields)


def draw(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(67, (batch, tokens), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("shape", "batch"),
    [(shape, batch) for shape in SHAPES for batch in (1, 3) if (shape, batch) != ("gpt_neox-80", 3)]
    + [
        ("qwen3-bias", FEW_ROWS + 1),
        ("llama-mlp-bias", FEW_ROWS + 1),
        ("gemma3", FEW_ROWS + 1),
        ("gpt_neox", FEW_ROWS + 1),
        ("qwen3-bias", FEW_ROWS + 2),  # the library's products
        ("gemma3", FEW_ROWS + 2),
        ("gpt_neox", FEW_ROWS + 2),
    ],
)
@torch.inference_mode()
def test_steps_equal_the_eager_decoder(shape, batch):
    decoder, tokens = make(**SHAPES[shape]), draw(batch, 7)
    made = backend_of("kernels", decoder, rows=batch, capacity=16)
    truth = ContiguousCache(decoder.arch, *tokens.shape)
    expected = decoder.logits(decoder(tokens, cache=truth))[:, 4:].transpose(0, 1)
    found = step_through(made, tokens, 5)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    own = made.cache.rows[:, :, :batch, :, :2]  # after the prompt
    torch.testing.assert_close(own, truth.kv[..., 5:7, :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("shape", "batch"), [("qwen3-tied", 2), ("gpt_neox-80", 1)])
@torch.inference_mode()
def test_a_step_in_16_bits_follows_the_eager_decoder(shape, batch):
    # float16, because the interpreter's products of bfloat16 are wrong; the GPU's are checked
    # by tests/gpu/check_engine.py.
    decoder, tokens = make(torch.float16, **SHAPES[shape]), draw(batch, 8)
    made = backend_of("kernels", decoder, rows=batch, capacity=16)
    expected = decoder.logits(decoder(tokens)).float()[:, 4:].transpose(0, 1)
    found = step_through(made, tokens, 5)
    assert found.dtype == torch.float16
    assert (found.float() - expected).norm() / expected.norm() < 0.01


PROMPTS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize("shape", ["gpt_neox", "gpt_neox-sequential", "gemma3"])
@pytest.mark.parametrize("fused", [{"norm"}, {"mlp"}, set()])
@torch.inference_mode()
def test_a_step_in_more_kernels_is_the_same(shape, fused):
    decoder, tokens = make(**SHAPES[shape]), draw(1, 7)
    made = backend_of("kernels", decoder, rows=1, capacity=16)
    made.step.fused = frozenset(fused)
    expected = decoder.logits(decoder(tokens))[:, 4:].transpose(0, 1)
    torch.testing.assert_close(step_through(made, tokens, 5), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("shape", "parts"), [("gpt_neox", 3), ("gpt_neox-sequential", 5)])
@torch.inference_mode()
def test_one_row_needs_no_kernel_for_a_layernorm(monkeypatch, shape, parts):
    def refuse(*_, **__):
        raise AssertionError("a norm by itself")

    monkeypatch.setattr(step, "add_normed", refuse)
    decoder, tokens = make(**SHAPES[shape]), draw(1, 7)
    made = backend_of("kernels", decoder, rows=1, capacity=16)
    expected = decoder.logits(decoder(tokens))[:, 4:].transpose(0, 1)
    torch.testing.assert_close(step_through(made, tokens, 5), expected, atol=2e-4, rtol=1e-4)
    names = [*made.step.parts()][1:-1]
    assert len(names) == parts
    bytes_of = made.step.weight_bytes
    weights = made.step._weights.layers
    read = sum(
        w.nbytes for layer in weights for w in (layer.qkv, layer.o, layer.gate_up, layer.down)
    )
    assert sum(bytes_of[name] for name in names if name != "attention") == read


@torch.inference_mode()
def log_probabilities(decoder, prompt, tokens, temperature=1.0):
    """Of tokens after a prompt, by one eager forward."""
    logits = decoder.logits(decoder(torch.tensor([prompt + list(tokens)])))[0]
    scores = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    return scores.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@pytest.mark.parametrize(
    ("shape", "temperature"), [("llama", 0.0), ("llama", 0.8), ("gemma3", 0.8), ("gpt_neox", 0.8)]
)
def test_completions_are_what_the_decoder_says_and_repeat(shape, temperature):
    decoder = make(**SHAPES[shape])
    sampling = SamplingParams(max_tokens=4, temperature=temperature, seed=3)
    engine = Engine(decoder, capacity=12)
    first = engine.generate(PROMPTS, sampling, num_candidates=2)
    for prompt, completions in zip(PROMPTS, first, strict=True):
        for completion in completions:
            expected = log_probabilities(decoder, prompt, completion.tokens, temperature or 1.0)
            assert completion.logprobs == pytest.approx(expected, abs=1e-3)
    again = engine.generate(PROMPTS, sampling, num_candidates=2)
    assert [[c.tokens for c in row] for row in again] == [[c.tokens for c in row] for row in first]
    # What a candidate draws depends on its name and its logits, not on what runs beside it.
    fewer = engine.generate(PROMPTS[:2], sampling, num_candidates=1)
    assert [row[0].tokens for row in fewer] == [row[0].tokens for row in first[:2]]
    if temperature:
        assert len({c.tokens for c in first[0]}) > 1


@pytest.mark.parametrize(
    ("shape", "rows"), [("llama", 2), ("llama", 5), ("gemma3", 5), ("gpt_neox", 5)]
)
def test_kept_prompts_run_their_last_token_in_the_rows(shape, rows):
    """Whatever the company: all prefilled, all kept, and one prompt that is new."""
    decoder = make(**SHAPES[shape])
    prefill = PrefixPrefill(RadixCache(1 << 24))
    engine = Engine(decoder, capacity=12, prefill=prefill, max_rows=rows)
    params = [SamplingParams(max_tokens=2 + n, temperature=1.0, n=n, seed=3) for n in (2, 3, 1)]
    prompts, first = PROMPTS, None
    for kept in (0, 3, 2):
        found = engine.generate(prompts, params)
        assert engine.backend.name == "kernels"
        assert engine.last_stats.kept_prompts == kept
        for prompt, wanted, row in zip(prompts, params, found, strict=True):
            assert [len(c.tokens) for c in row] == [wanted.max_tokens] * wanted.n
            for completion in row:
                expected = log_probabilities(decoder, prompt, completion.tokens)
                assert completion.logprobs == pytest.approx(expected, abs=1e-3)
        if kept == 3:
            assert [[c.tokens for c in row] for row in found] == first
        first = [[c.tokens for c in row] for row in found]
        prompts = [PROMPTS[0], [11, 12, 13], PROMPTS[2]] if kept == 3 else PROMPTS


def test_a_stop_token_ends_its_row_only(monkeypatch):
    monkeypatch.setattr(KernelBackend, "interval", 3)
    decoder = make(**SHAPES["llama"])
    free = SamplingParams(max_tokens=11, temperature=1.0, seed=5)
    engine = Engine(decoder, capacity=16)
    whole = engine.generate(PROMPTS[:1], free, num_candidates=2)[0]
    stop = whole[0].tokens[4]
    limited = SamplingParams(max_tokens=11, temperature=1.0, seed=5, stop_token_ids=(stop,))
    for full, cut in zip(
        whole, engine.generate(PROMPTS[:1], limited, num_candidates=2)[0], strict=True
    ):
        assert cut.tokens == full.tokens[: len(cut.tokens)]
        assert stop not in cut.tokens[:-1]
        assert (cut.finish_reason == "stop") == (cut.tokens[-1] == stop)


def test_changed_weights_show_at_once():
    decoder = make(**SHAPES["qwen3-tied"])
    engine = Engine(decoder, capacity=12)
    greedy = SamplingParams(max_tokens=3)
    engine.generate(PROMPTS[:1], greedy)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(-1.1)
    engine.set_weights_version("next")
    [[completion]] = engine.generate(PROMPTS[:1], greedy)
    expected = log_probabilities(decoder, PROMPTS[0], completion.tokens)
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("pieces", [[9], [5, 1, 3]])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_packed_prefill_equals_the_eager_decoder(shape, pieces):
    decoder, tokens = make(**SHAPES[shape]), draw(2, 9)
    truth = ContiguousCache(decoder.arch, 2, 12)
    expected = decoder.logits(decoder(tokens, cache=truth))
    cache = ContiguousCache.over(ContiguousCache(decoder.arch, 3, 12).kv[:, :, 1:3])
    weights, end = PackedDecoder(decoder), 0
    for piece in tokens.split(pieces, 1):
        logits = Forward(decoder, weights=weights)(piece, cache)
        end += piece.shape[1]
        torch.testing.assert_close(logits, expected[:, end - 1], atol=2e-4, rtol=1e-4)
    for layer in range(decoder.arch.num_layers):
        torch.testing.assert_close(cache.read(layer), truth.read(layer), atol=1e-4, rtol=1e-4)


def test_batch_invariance_is_refused_and_another_backend_keeps_it():
    decoder = make(**SHAPES["llama"])
    with pytest.raises(Unsupported, match="last bits"):
        Engine(decoder, capacity=12, backend="kernels", batch_invariant=True).prefill_prompt([1])
    engine = Engine(decoder, capacity=12, batch_invariant=True)
    free = SamplingParams(max_tokens=3, temperature=1.0, n=2)
    together = engine.generate(PROMPTS, free)
    assert engine.backend.name in ("compiled", "eager")
    assert engine.generate(PROMPTS[1:2], free) == together[1:2]


def test_each_prompt_has_its_own_number_of_candidates_in_few_rows():
    decoder = make(**SHAPES["llama"])
    params = [SamplingParams(max_tokens=3 + n, temperature=1.0, n=n) for n in (2, 3, 1)]
    engine = Engine(decoder, capacity=12, max_rows=2)
    found = engine.generate(PROMPTS, params)
    assert engine.backend.name == "kernels"
    assert {batch.rows for batch in engine.last_stats.batches} <= {1, 2}
    for prompt, wanted, row in zip(PROMPTS, params, found, strict=True):
        assert [len(c.tokens) for c in row] == [wanted.max_tokens] * wanted.n
        for completion in row:
            expected = log_probabilities(decoder, prompt, completion.tokens)
            assert completion.logprobs == pytest.approx(expected, abs=1e-3)
