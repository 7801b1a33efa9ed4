"""Sampling on the device against the engine's own, under Triton's interpreter."""

import math

import numpy as np
import pytest
import torch

from ember.backends.cuda import sampling as kernels
from ember.backends.cuda.sampling import Sampler
from ember.backends.sampling import SamplingParams, cut_tail

V = 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 64)
    monkeypatch.setattr(kernels, "BLOCK", 128)


def make(logits: torch.Tensor, length: int = 8, **parameters) -> Sampler:
    rows = len(logits)
    tokens = torch.full((rows,), -1)
    positions = torch.zeros(rows, dtype=torch.int32)
    sampler = Sampler(logits, tokens, positions, length)
    for name, values in parameters.items():
        getattr(sampler, name).copy_(torch.as_tensor(values))
    return sampler


def draw_logits(rows: int, dtype=torch.float32) -> torch.Tensor:
    return (2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))).to(dtype)


def philox(seed: int, ids: np.ndarray, step: int, kind: int = 0) -> np.ndarray:
    """Philox-4x32, 10 rounds (Salmon et al. 2011), counter (id / 4, step, kind): word id % 4."""
    counter = ids // 4
    words = [counter.astype(np.uint64), np.full_like(counter, step, dtype=np.uint64)]
    words += [np.full_like(words[0], kind), np.zeros_like(words[0])]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
        words = [
            (second >> high) ^ words[1] ^ np.uint64(key[0]),
            second & low,
            (first >> high) ^ words[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.choose(ids % 4, words).astype(np.uint32)


def clocks(*counter) -> np.ndarray:
    return -np.log1p(-(philox(*counter).astype(np.float64) + 0.5) / 2.0**32)


def expected_token(logits: torch.Tensor, seed: int, step: int, params: SamplingParams) -> int:
    """A chunk by its mass, and one of its tokens."""
    scaled = cut_tail(logits.float()[None] / params.temperature, params)[0].double()
    chunks = scaled.split(kernels.CHUNK)
    masses = torch.stack([chunk.logsumexp(0) for chunk in chunks]).numpy()
    chunk = int((masses - np.log(clocks(seed, 4 * np.arange(len(chunks)), step, 1))).argmax())
    ids = chunk * kernels.CHUNK + np.arange(len(chunks[chunk]))
    return int(ids[(chunks[chunk].numpy() - np.log(clocks(seed, ids, step))).argmax()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy(dtype):
    logits = draw_logits(3, dtype)
    sampler = make(logits)
    sampler.run(noise=False, cut=False, ranked=False)
    expected, best = logits.float().log_softmax(-1).max(-1)
    torch.testing.assert_close(sampler.history[0], best)
    torch.testing.assert_close(sampler.logprobs[0], expected, atol=1e-5, rtol=0)
    assert sampler._tokens.tolist() == best.tolist()
    assert sampler.steps.tolist() == [1] * 3
    assert sampler._positions.tolist() == [1] * 3


CUTS = [
    {},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
def test_draws_follow_the_seeds_and_the_cuts(cut, dtype):
    params = SamplingParams(temperature=0.7, **cut)
    logits = draw_logits(2, dtype)
    seeds = [5, (1 << 62) + 12345]
    sampler = make(
        logits,
        seeds=seeds,
        inverse=[1 / 0.7] * 2,
        noise=[1.0] * 2,
        top_k=[params.top_k] * 2,
        top_p=[params.top_p] * 2,
        min_p=[params.min_p] * 2,
    )
    for step in range(6):
        sampler.run(noise=True, cut=bool(cut), ranked=bool({"top_k", "top_p"} & set(cut)))
        for row in range(2):
            token = expected_token(logits[row], seeds[row], step, params)
            assert sampler.history[step, row] == token
            cut_logits = cut_tail(logits[row : row + 1].float() / 0.7, params)[0]
            logprob = cut_logits.log_softmax(-1)[token]
            assert sampler.logprobs[step, row].item() == pytest.approx(logprob.item(), abs=1e-5)
            raw = logits[row].float().log_softmax(-1)[token]
            assert sampler.raw_logprobs[step, row].item() == pytest.approx(raw.item(), abs=1e-5)


def test_rows_have_parameters_of_their_own():
    logits = draw_logits(1).repeat(3, 1)
    sampler = make(
        logits, noise=[0.0, 1.0, 1.0], top_k=[0, 1, 0], seeds=[0, 1, 2], inverse=[1.0, 2.0, 0.5]
    )
    for _ in range(8):
        sampler.run(noise=True, cut=True, ranked=True)
    best = logits[0].argmax().item()
    assert sampler.history[:, :2].unique().tolist() == [best]
    assert len(set(sampler.history[:, 2].tolist())) > 1


def test_frequencies_follow_the_distribution(monkeypatch):
    # By the same draws in NumPy, which the kernel's equal: the interpreter takes minutes for 4000.
    monkeypatch.setattr(kernels, "CHUNK", 4)
    probabilities, draws = torch.tensor([0.3, 0.25, 0.15, 0.1, 0.15, 0.05]), 4000
    logits, plain = probabilities.log(), SamplingParams(temperature=1.0)
    sampler = make(logits.repeat(8, 1), seeds=list(range(8)), noise=[1.0] * 8)
    sampler.run(noise=True, cut=False, ranked=False)
    tokens = [expected_token(logits, seed, 0, plain) for seed in range(draws)]
    assert sampler.history[0].tolist() == tokens[:8]
    found = torch.bincount(torch.tensor(tokens), minlength=6) / draws
    spread = (probabilities * (1 - probabilities) / draws).sqrt()
    assert ((found - probabilities).abs() < 4 * spread).all()


def test_masked_logits_are_never_drawn():
    logits = torch.full((1, V), -math.inf)
    logits[0, 70] = 1.0
    sampler = make(logits, noise=[1.0])
    sampler.run(noise=True, cut=True, ranked=True)
    assert sampler.history[0].tolist() == [70]
    assert sampler.logprobs[0].item() == pytest.approx(0.0, abs=1e-6)


def test_the_likeliest_tokens_are_noted_and_later_rows_left_alone():
    logits = draw_logits(3)
    sampler = make(logits)
    for _ in range(2):
        sampler.run(noise=False, cut=False, ranked=False, rows=2, alternatives=3)
    expected, best = logits.log_softmax(-1).topk(3)
    ids, values = sampler.alternatives[3]
    for step in range(2):
        assert torch.equal(ids[step, :2], best[:2])
        torch.testing.assert_close(values[step, :2], expected[:2], atol=1e-5, rtol=0)
    assert sampler.steps.tolist() == [2, 2, 0]
    assert ids[:, 2].count_nonzero() == 0
    assert ids[2:].count_nonzero() == 0
