"""Streams on the kernels under Triton's interpreter, against the eager cache."""

import numpy as np
import pytest
import torch

from ember.streaming import build, fast, stream
from ember.streaming.kept import Kept
from tests.backends.cuda.interpreted_step import SHAPES, draw, few_programs, make  # noqa: F401

BUDGET = {"peak": 14, "n_sink": 2}


@pytest.mark.parametrize(
    ("shape", "point", "spare"),
    [
        ("gpt_neox", {"name": "lazy_prune", "compression_interval": 3}, 0.5),
        ("gpt_neox", {"name": "streaming_llm"}, 0.3),
        ("qwen3-tied", {"name": "lazy_prune", "compression_interval": 4}, 0),
        (
            "qwen3-tied",
            {
                "name": "refresh",
                "compression_interval": 4,
                "refresh_budget": 2,
                "max_drop": 3,
                "selector": "uniform",
            },
            0.5,
        ),
    ],
)
def test_a_stream_on_kernels_equals_the_eager_cache(monkeypatch, shape, point, spare):
    monkeypatch.setattr(fast, "OWN", 3)
    monkeypatch.setattr(fast, "FAR", 9)
    decoder, tokens = make(**SHAPES[shape]), draw(1, 24)
    method = build.build(BUDGET | point)
    expected = stream.run(decoder, tokens, method)
    found = fast.run(decoder, tokens, method, prefill=12, spare=spare, backend="kernels")
    assert found.path == "kernels"
    assert found.drops == expected.drops
    np.testing.assert_allclose(found.nll[:, 11:], expected.nll[:, 11:], atol=1e-3)


@pytest.mark.parametrize("shape", ["gpt_neox", "qwen3-tied"])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_drop_moves_is_the_same_by_kernels_and_by_operators(shape, seed):
    """Any slots, with and without known keys, onto where others lie; nothing else is touched."""
    arch, rng = make(**SHAPES[shape]).arch, np.random.default_rng(seed)
    size = (arch.num_layers, 2, arch.num_kv_heads, 40, arch.head_dim)
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    memory = {kernels: drawn.clone() for kernels in (False, True)}
    both = [Kept(arch, kv, 20, 90, kernels=kernels) for kernels, kv in memory.items()]
    for _ in range(4):
        after, begin, offset = rng.integers(1, 20), rng.integers(12), rng.integers(40)
        kept = sorted(rng.choice(after, rng.integers(after), replace=False).tolist())
        target, values = int(rng.integers(12)), bool(rng.integers(2))
        for each in both:
            each.take(kept, int(after), int(begin), int(offset))
            each.put(len(kept), target, int(offset) + 1, values=values)
        torch.testing.assert_close(memory[True], memory[False], atol=1e-5, rtol=1e-5)
        assert both[0].known == both[1].known


@pytest.mark.parametrize("dtype", [torch.float16])
def test_a_stream_in_16_bits_follows_the_decoder(dtype):
    """Keys that are rotated again and again keep one rounding."""
    decoder, tokens = make(dtype, **SHAPES["gpt_neox"]), draw(1, 28)
    method = build.build(BUDGET | {"name": "streaming_llm"})
    exact = stream.run(make(**SHAPES["gpt_neox"]), tokens, method)
    found = fast.run(decoder, tokens, method, prefill=12, backend="kernels")
    assert np.abs(found.nll - exact.nll)[:, 11:].max() < 0.1
