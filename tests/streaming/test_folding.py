"""Folding and recomputation: what a mask cannot say has oracles of its own."""

import numpy as np
import pytest
import torch

from ember.model.decoder import rotary_tables, rotate
from ember.streaming import build
from ember.streaming.methods.fold import folded
from ember.streaming.stream import run
from tests.streaming.oracle import Spy, spied_run
from tests.tiny import decoder_of, draw, tiny


@pytest.fixture(scope="module")
def decoder():
    return decoder_of(tiny("gpt_neox", vocab_size=31), dtype=torch.float64)


def attention(q, k, v, bias=0.0):
    """Mass and summed values, neither divided by the softmax's sum: of q (Hq, D)."""
    terms = ((q[:, None] * k).sum(-1) / q.shape[-1] ** 0.5 + bias).exp()
    return terms.sum(-1), (terms[..., None] * v).sum(-2)


def test_a_folded_slot_equals_its_tokens_for_its_query():
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    q = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 9, dtype=torch.float64)  # some of them folded before
    mass, values = attention(q, k, v, bias)
    shares = ((q[:, None] * k).sum(-1) / 8**0.5 + bias).softmax(-1).detach()
    one_k, one_v, one_b = folded(k, v, 0.3 * shares, bias)  # whatever all others take
    one_mass, one_values = attention(q, one_k[:, None], one_v[:, None], one_b[:, None])
    torch.testing.assert_close(one_mass, mass)
    torch.testing.assert_close(one_values, values)
    torch.testing.assert_close(
        torch.autograd.grad(one_mass.sum(), q)[0], torch.autograd.grad(mass.sum(), q)[0]
    )


def test_mass_that_underflowed_folds_evenly():
    k = torch.arange(8.0).view(1, 4, 2)
    one, _, bias = folded(k, k, torch.zeros(1, 4))
    torch.testing.assert_close(one, k.mean(1))
    torch.testing.assert_close(bias, torch.tensor([4.0]).log())


@torch.inference_mode()
def test_a_folded_cache_answers_its_last_query_as_the_whole_one_would(decoder, monkeypatch):
    """In the first layer, whose keys depend on no history: the same query, asked again."""
    seen = []

    class Watch(Spy):
        def drop(self, places):
            super().drop(places)
            seen.append((self.k[0].clone(), self.v[0].clone(), self.bias[0].clone(), self.slots))

    spec = {"name": "fold", "peak": 20, "n_sink": 2, "compression_interval": 8}
    tokens = draw(2, 21, 31)
    monkeypatch.setattr("tests.streaming.oracle.Spy", Watch)
    spied_run(monkeypatch, decoder, tokens, build.build(spec))
    [(k, v, bias, slots)] = seen
    assert slots == 12
    _, whole = spied_run(
        monkeypatch, decoder, tokens[:, :20], build.build({"name": "full", "peak": 20})
    )
    layer = decoder.layers[0]
    normed = layer.input_layernorm(decoder.embed(tokens[:, 19:20]))
    table = rotary_tables(decoder.arch, torch.tensor([19]), torch.float64)
    q = rotate(layer.self_attn.q_proj(normed).unflatten(-1, (-1, 8)), *table).transpose(1, 2)

    def answer(k, v, bias=0.0):
        scores = (q * k).sum(-1) / 8**0.5 + bias  # (B, Hq, n)
        return (scores.softmax(-1)[..., None] * v).sum(2)

    mine = answer(k[:, :, :slots], v[:, :, :slots], bias[:, :, :slots])
    # The sinks have moved up to the window, so theirs is the only change: put them back.
    k[:, :, :2] = whole.k[0, :, :, :2]
    same = answer(k[:, :, :slots], v[:, :, :slots], bias[:, :, :slots])
    expected = answer(whole.k[0], whole.v[0])
    torch.testing.assert_close(same, expected, atol=1e-9, rtol=0)
    assert (mine - expected).abs().max() > 1e-6
    assert (bias[:, :, 3:] == 0).all()


def test_folding_softens_a_prune(decoder):
    """Closer to nothing dropped than lazy pruning, right after a prune."""
    tokens = draw(24, 22, 31, seed=3)
    whole = run(decoder, tokens, build.build({"name": "full", "peak": 22})).nll
    spec = {"peak": 20, "n_sink": 2, "compression_interval": 10}
    lazy = run(decoder, tokens, build.build({"name": "lazy_prune", **spec})).nll
    folding = run(decoder, tokens, build.build({"name": "fold", **spec})).nll
    assert np.abs(folding - whole)[:, 20].mean() < np.abs(lazy - whole)[:, 20].mean()


@torch.inference_mode()
def test_recomputation_reads_what_is_kept_as_a_text(decoder):
    spec = {"name": "recompute", "peak": 12, "n_sink": 2, "compression_interval": 4}
    tokens = draw(2, 40, 31)
    found = run(decoder, tokens, build.build(spec))
    held = []
    for token in range(39):
        held.append(token)
        logits = decoder.logits(decoder(tokens[:, held]))[:, -1].log_softmax(-1)
        expected = -logits.gather(1, tokens[:, token + 1 : token + 2])[:, 0]
        np.testing.assert_allclose(found.nll[:, token], expected.numpy(), atol=1e-4)
        if len(held) == 12:
            del held[2:6]
    assert found.calls == 2 * len(found.drops) + 1
