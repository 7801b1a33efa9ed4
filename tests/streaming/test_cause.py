"""What a prune takes: repairs against the streams they are read from."""

import numpy as np
import pytest
import torch

from ember.streaming.build import build
from ember.streaming.cause import REPAIRS, prunes
from ember.streaming.stream import run
from tests.tiny import decoder_of, draw, tiny

BUDGET = {"peak": 20, "n_sink": 2, "compression_interval": 6}


@pytest.fixture(scope="module", params=[{}, {"num_heads": 4, "num_kv_heads": 2}], ids=str)
def decoder(request):
    return decoder_of(tiny("gpt_neox", vocab_size=31, **request.param), dtype=torch.float64)


def found(decoder, tokens, **options):
    settings = {"peak": 20, "n_sink": 2, "interval": 6} | options
    return list(prunes(decoder, tokens, **settings))


def test_without_repair_it_is_lazy_pruning(decoder):
    tokens = draw(3, 47, 31)
    lazy = run(decoder, tokens, build({"name": "lazy_prune", **BUDGET}))
    rows = found(decoder, tokens)
    assert [row.step for row in rows] == [20, 26, 32, 38]
    for row in rows:
        expected = lazy.nll[:, row.step : row.step + 6]
        np.testing.assert_allclose(row.nll["none"], expected, atol=1e-4)
        for layer in decoder.layers:
            assert "attend" not in vars(layer.self_attn), "the decoder is left as it was"


def test_all_repaired_is_a_text_without_the_sinks_move(decoder):
    """Without sinks nothing moves, so that the first prune's whole is the plain text."""
    tokens = draw(3, 27, 31)
    [row] = found(decoder, tokens, n_sink=0)
    whole = run(decoder, tokens, build({"name": "full", "peak": 27})).nll
    np.testing.assert_allclose(row.nll["all"], whole[:, 20:26], atol=1e-4)
    assert np.abs(row.nll["none"].numpy() - whole[:, 20:26]).max() > 1e-3


def test_folding_is_the_method(decoder):
    """Nearly, at the first prune: the method folds one token more, for the slot's own place."""
    tokens = draw(3, 27, 31)
    spec = {"name": "fold", "peak": 20, "n_sink": 2, "compression_interval": 6}
    method = run(decoder, tokens, build(spec)).nll[:, 20:26]
    [row] = found(decoder, tokens)
    assert (
        np.abs(method - row.nll["fold"].numpy()).mean()
        < np.abs(method - row.nll["none"].numpy()).mean()
    )


def test_parts_add_up(decoder):
    tokens = draw(4, 60, 31)
    for row in found(decoder, tokens):
        assert ((row.mass > 0) & (row.mass < 1)).all()
        assert (row.cosine <= 1).all()
        assert ((row.across >= 0) & (row.across <= 1)).all()
        assert set(row.nll) == set(REPAIRS)
        assert row.mass.shape == (decoder.arch.num_layers, 4)
