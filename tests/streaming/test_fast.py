"""The fast backends' streams against the eager cache, which has an oracle of its own."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.backends.select import Unsupported
from ember.cache.base import BadCacheUse
from ember.model.rope import UnsupportedModel
from ember.streaming import build, fast, stream
from ember.streaming.method import BadMethod
from tests.streaming.test_methods import FIXED, POINTS
from tests.tiny import draw, wild

TOKENS = 70
STRUCTURAL = torch.arange(61) % 4 == 0
EXACT = {"atol": 3e-4, "rtol": 0}
FAST = [
    {"name": name, **options}
    for name in sorted(fast.BY_NUMBER)
    for options in POINTS[name]
    if not options.get("absolute") and options.get("selector") not in ("uncertainty", "attention")
]


def method_of(point, **budget):
    fixed = FIXED.get(point["name"], ())
    spec = {key: value for key, value in (budget | point).items() if value is not None}
    return build.build({key: value for key, value in spec.items() if key not in fixed})


def compare(decoder, tokens, method, prefill, **options):
    about = {"structural": STRUCTURAL}
    expected = stream.run(decoder, tokens, method, **about)
    found = fast.run(decoder, tokens, method, prefill=prefill, **about, **options)
    first = found.prefilled - 1
    assert np.isnan(found.nll[:, :first]).all()
    np.testing.assert_allclose(found.nll[:, first:], expected.nll[:, first:], **EXACT)
    assert found.drops == expected.drops
    assert (found.visible == expected.visible).all()
    return found


@pytest.mark.parametrize("point", FAST, ids=str)
@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_compiled_steps_equal_the_eager_cache(architecture, point, data):
    """Any budget, with and without the soft ring, however often positions are counted anew and the
    row's own memory is full."""
    interval, sinks = data.draw(st.integers(3, 8)), data.draw(st.integers(0, 3))
    peak = data.draw(st.integers(interval + 2 * sinks + 9, 30))
    method = method_of(point, compression_interval=interval, n_sink=sinks, peak=peak)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "OWN", data.draw(st.sampled_from([1, 3, 64])))
        patch.setattr(fast, "FAR", data.draw(st.sampled_from([7, 4096])))
        compare(
            wild(architecture),
            draw(1, TOKENS, seed=data.draw(st.integers(0, 99))),
            method,
            prefill=data.draw(st.integers(1, peak + 2)),
            spare=data.draw(st.sampled_from([0, 0.3, 1.5])),
        )


def test_a_stream_is_timed_token_by_token():
    method = method_of({"name": "lazy_prune"}, peak=16, compression_interval=4)
    found = fast.run(wild("gpt_neox"), draw(1, TOKENS), method, prefill=9, timed=True)
    assert found.path == "compiled"
    assert (found.token_ms[:9] == 0).all()
    assert (found.token_ms[9:] > 0).all()
    assert found.prefill_ms > 0
    assert np.isnan(found.nll).all()


def test_what_a_prune_copies():
    """The row's own tokens once, the sinks' keys and values at each prune; nothing else."""
    decoder, tokens = wild("gpt_neox"), draw(1, 40)
    method = method_of({"name": "lazy_prune"}, peak=16, compression_interval=4, n_sink=2)
    found = fast.run(decoder, tokens, method, prefill=16, spare=2.0)
    prunes, token = len(found.drops), decoder.arch.kv_bytes_per_token(4)
    assert prunes == 6
    assert found.copied_bytes == token * (2 * prunes + 4 * (prunes - 1))


@pytest.mark.parametrize("point", [{"name": n, **o} for n in POINTS for o in POINTS[n]], ids=str)
def test_every_method_runs_or_says_why_not(point):
    method = method_of(point, peak=32, compression_interval=6, n_sink=2)
    reason = fast.unsupported_reason(method, wild("gpt_neox"))
    if point in FAST:
        assert reason is None
        return
    with pytest.raises(Unsupported, match=reason):
        fast.run(wild("gpt_neox"), draw(1, 40), method, prefill=4)


@torch.inference_mode()
def test_what_the_fast_path_refuses():
    method = method_of({"name": "lazy_prune"}, peak=16, compression_interval=4)
    decoder = wild("gpt_neox")
    with pytest.raises(BadMethod, match="one row"):
        fast.run(decoder, draw(2, 20), method, prefill=4)
    with pytest.raises(Unsupported, match="no compiled code"):
        fast.run(decoder.double(), draw(1, 20), method, prefill=4)
    with pytest.raises(Unsupported, match="sliding"):
        fast.run(wild("gemma3_text"), draw(1, 20), method, prefill=4)
    with pytest.raises(UnsupportedModel, match="sliding"):
        fast.RingCache(wild("gemma3_text"), method, 20)
    cache = fast.RingCache(wild("gpt_neox"), method, 20)
    cache.prefill(draw(1, 5))
    for places in ([5], [1, 1], [-1], []):
        with pytest.raises(BadCacheUse, match="of 5 tokens"):
            cache.drop(torch.tensor(places, dtype=torch.long))
    cache = fast.RingCache(wild("gpt_neox"), method, 20)
    cache.prefill(draw(1, 9))
    with pytest.raises(BadCacheUse, match=f"leaves 8 tokens .* with room for {method.n_sink}"):
        cache.drop(torch.tensor([8]))


@pytest.mark.parametrize("interpreted", ["interpreted_fast.py"], indirect=True)
def test_kernels_equal_the_eager_cache(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout
