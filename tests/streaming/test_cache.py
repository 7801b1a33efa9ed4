"""StreamingCache alone: bad use, long streams, and what it counts."""

import pytest
import torch

from ember.cache.base import BadCacheUse, CacheFull
from ember.model.rope import UnsupportedModel
from ember.streaming import build
from ember.streaming import cache as module
from ember.streaming.cache import StreamingCache
from ember.streaming.stream import run
from tests.tiny import decoder_of, draw, tiny

ARCH = tiny("gpt_neox", vocab_size=31)


@pytest.fixture(scope="module")
def decoder():
    return decoder_of(ARCH, dtype=torch.float64)


def filled(decoder, tokens=10, batch=2, spare=0):
    cache = StreamingCache(ARCH, batch, 12, dtype=torch.float64, spare=spare)
    with torch.inference_mode():
        decoder(draw(batch, tokens, 31), cache=cache)
    return cache


def test_models_that_slide_are_refused():
    """Their kernels have no range of sinks: it would silently be a plain window."""
    with pytest.raises(UnsupportedModel, match="would not see the sinks"):
        StreamingCache(tiny("gemma3_text"), 1, 8)


@pytest.mark.parametrize("places", [[10], [-1], [3, 3], []])
def test_places_that_are_not_held_are_refused(decoder, places):
    with pytest.raises(BadCacheUse, match="each once"):
        filled(decoder).drop(torch.tensor(places, dtype=torch.long))


def test_it_says_when_it_is_full(decoder):
    with pytest.raises(CacheFull, match="capacity is 12"):
        decoder.requires_grad_(False)(draw(2, 3, 31), cache=filled(decoder))


def test_the_order_of_the_places_does_not_matter(decoder):
    """A sink must not be lost where kept indices are sorted again."""
    one, other = filled(decoder), filled(decoder)
    one.drop(torch.tensor([3, 7, 2]))
    other.drop(torch.tensor([[7, 3, 2], [2, 3, 7]]))
    assert one.ids[0, 0, :7].tolist() == [0, 1, 4, 5, 6, 8, 9]
    assert (one.ids[..., :7] == other.ids[..., :7]).all()
    assert (one.k[..., :7, :] == other.k[..., :7, :]).all()


def test_copied_bytes_are_those_of_what_moves(decoder):
    cache = filled(decoder)
    cache.drop(torch.tensor([2, 3, 4]))
    token = 3 * 2 * 4 * 8 * 8  # layers, rows, heads, dimensions, bytes
    assert cache.copied_bytes == 5 * 3 * token + 2 * token  # five moved, two sinks rotated anew
    tail = filled(decoder)
    tail.drop(torch.tensor([8, 9]))
    assert tail.copied_bytes == 8 * token, "nothing moves, all now stand nearer to the end"


def test_a_long_stream_is_counted_from_zero_again(decoder, monkeypatch):
    spec = {"name": "lazy_prune", "peak": 12, "n_sink": 2, "compression_interval": 4}
    tokens = draw(2, 90, 31)
    plain = run(decoder, tokens, build.build(spec)).nll
    monkeypatch.setattr(module, "FAR", 9)
    again = run(decoder, tokens, build.build(spec)).nll
    assert abs(plain - again).max() < 1e-4


def test_what_is_reset_is_as_new(decoder):
    cache = filled(decoder)
    cache.wants_mass = True
    cache.drop(torch.tensor([2]))
    cache.reset()
    tokens = draw(2, 12, 31, seed=9)
    with torch.inference_mode():
        found = decoder(tokens, cache=cache)
        expected = decoder(tokens)
    torch.testing.assert_close(found, expected)
    assert cache.ids[0, 0].tolist() == list(range(12))
    assert float(cache.mass.sum()) == pytest.approx(3 * 2 * 4 * 12)


@pytest.mark.parametrize("spec", [{"compression_interval": 4}, {"n_sink": 3}], ids=str)
def test_a_soft_ring_computes_the_same_and_copies_less(decoder, spec):
    method = build.build({"name": "lazy_prune", "peak": 16, "n_sink": 2, **spec})
    tokens = draw(2, 120, 31)
    shifted, ring = (run(decoder, tokens, method, spare=spare) for spare in (0, 1.0))
    assert abs(shifted.nll - ring.nll).max() < 1e-9
    assert ring.drops == shifted.drops
    assert ring.copied_bytes < 0.5 * shifted.copied_bytes


def test_a_ring_moves_the_sinks_and_wraps_where_memory_ends(decoder):
    cache = filled(decoder, 12, spare=4)
    token = 3 * 2 * 4 * 8 * 8
    with torch.inference_mode():
        for step in range(5):
            cache.drop(torch.tensor([2]))
            moved = 2 * 3 * token + 2 * token  # two sinks, and their angles
            assert cache.copied_bytes == (step + 1) * moved
            if step < 4:
                decoder(draw(2, 1, 31), cache=cache)
        decoder(draw(2, 1, 31), cache=cache)
    assert cache.copied_bytes == 5 * moved + 11 * 3 * token
    assert cache.ids[0, 0].tolist() == [0, 1, *range(7, 17)]
