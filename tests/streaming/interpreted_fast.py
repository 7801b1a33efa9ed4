"""Streams on the kernels under Triton's interpreter, against the eager cache."""

import numpy as np
import pytest
import torch

from ember.streaming import build, fast, stream
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


@pytest.mark.parametrize("dtype", [torch.float16])
def test_a_stream_in_16_bits_follows_the_decoder(dtype):
    """Keys that are rotated again and again keep one rounding."""
    decoder, tokens = make(dtype, **SHAPES["gpt_neox"]), draw(1, 28)
    method = build.build(BUDGET | {"name": "streaming_llm"})
    exact = stream.run(make(**SHAPES["gpt_neox"]), tokens, method)
    found = fast.run(decoder, tokens, method, prefill=12, backend="kernels")
    assert np.abs(found.nll - exact.nll)[:, 11:].max() < 0.1
