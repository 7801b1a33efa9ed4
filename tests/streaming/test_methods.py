"""Every method against a masked full forward, over random schedules; and what each promises."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.streaming import build
from ember.streaming.method import BadMethod, lowest
from ember.streaming.stream import run
from tests.streaming.oracle import full_forward, spied_run
from tests.tiny import decoder_of, draw, tiny

TOKENS = 44
# Options of each method beside peak, period and sinks; a test says so if one is missing.
POINTS = {
    "adaptive": [{"early": 0.5}],
    "fold": [{}, {"slots": 2, "queries": 4}, {"carry": True}],
    "full": [{}],
    "key_norm": [{}, {"recent": 3}],
    "lacache": [{"recent": 4}],
    "lazy_prune": [{}, {"absolute": True}],
    "max_drop": [{"max_drop": 2}],
    "overlap": [{"overlap": 1}],
    "random_eviction": [{"recent": 2}],
    "recompute": [{}],
    "refresh": [
        {"refresh_budget": 3, "selector": selector, "max_drop": portion}
        for selector, portion in (
            ("uniform", None),
            ("structural", 2),
            ("uncertainty", None),
            ("attention", 2),
        )
    ],
    "slack": [{"slack": 3}],
    "snapkv": [{"window_size": 3}],
    "streaming_llm": [{}],
    "tova": [{}],
    "window": [{}],
}
FIXED = {"window": ("n_sink", "compression_interval"), "streaming_llm": ("compression_interval",)}
EXACT = {"atol": 2e-4, "rtol": 0}  # float32 angles, of other positions with the same distances


def specs(peak=20, interval=5, n_sink=2):
    for name, many in POINTS.items():
        for options in many:
            spec = {"name": name, "peak": peak, "compression_interval": interval}
            spec = spec | {"n_sink": n_sink} | options
            spec = {k: v for k, v in spec.items() if v is not None}
            yield {k: v for k, v in spec.items() if k not in FIXED.get(name, ())}


@pytest.fixture(scope="module")
def decoder():
    return decoder_of(tiny("gpt_neox", vocab_size=31), dtype=torch.float64)


def streams(method, rows=2, seed=2):
    return draw(1 if method.one_row else rows, TOKENS, 31, seed)


STRUCTURAL = torch.arange(31) % 4 == 0


def test_no_method_is_left_out():
    assert sorted(POINTS) == build.names()
    used = {spec["selector"] for spec in specs() if "selector" in spec}
    assert sorted(used) == build.names("selectors")


@pytest.mark.parametrize("spec", list(specs()), ids=str)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_it_is_a_masked_full_forward(decoder, spec, data):
    interval = data.draw(st.integers(3, 8))
    sinks = data.draw(st.integers(0, 3))
    peak = data.draw(st.integers(interval + 2 * sinks + 9, 30))
    changed = {"compression_interval": interval, "n_sink": sinks, "peak": peak}
    method = build.build(spec | {k: v for k, v in changed.items() if k in spec})
    tokens = streams(method, seed=data.draw(st.integers(0, 99)))
    with pytest.MonkeyPatch.context() as patch:
        found, cache = spied_run(patch, decoder, tokens, method, structural=STRUCTURAL)
        pieces = run(decoder, tokens, method, structural=STRUCTURAL, timed=True)
    np.testing.assert_allclose(found.nll, pieces.nll, **EXACT)
    assert found.drops == pieces.drops
    assert (found.visible == pieces.visible).all()
    if spec["name"] in ("fold", "recompute"):  # no masks: oracles of their own
        return
    expected = full_forward(decoder, tokens, cache.visible, method.absolute)
    np.testing.assert_allclose(found.nll, expected, **EXACT)


@pytest.mark.parametrize("spec", list(specs()), ids=str)
def test_the_budget_is_exact(decoder, spec, monkeypatch):
    method = build.build(spec)
    tokens = streams(method)
    found, cache = spied_run(monkeypatch, decoder, tokens, method, structural=STRUCTURAL)
    if not method.prunes:
        assert found.visible.tolist() == list(range(1, TOKENS + 1))
        return
    assert found.visible.max() == method.peak, "compared at equal peak"
    assert cache.capacity == method.peak, "and not one slot more"
    assert sum(count for _, count in found.drops) == TOKENS - cache.slots
    assert min(count for _, count in found.drops) > 0
    for seen in cache.visible:
        for token, ids in seen.items():
            assert (ids[:, -1] == token).all()
            assert ids[:, : method.n_sink].tolist() == [
                list(range(min(token + 1, method.n_sink)))
            ] * len(ids), "the sinks stay first, in order"
            ordered = ids[:, method.n_sink + (method.name == "fold") * method.reserved :]
            assert (ordered.diff(dim=1) > 0).all(), "the others in the order of the text"


def test_plain_methods_hold_exactly_sinks_and_window(decoder, monkeypatch):
    for name, period in (("streaming_llm", 1), ("lazy_prune", 6)):
        spec = {"name": name, "peak": 16, "n_sink": 2}
        spec |= {"compression_interval": period} if period > 1 else {}
        found, cache = spied_run(monkeypatch, decoder, draw(1, TOKENS, 31), build.build(spec))
        held, drops = [], []
        for token in range(TOKENS):
            held.append(token)
            assert cache.visible[1][token][0].tolist() == held
            if len(held) == 16 and token + 1 < TOKENS:
                del held[2 : 2 + period]
                drops.append((token + 1, period))
        assert found.drops == drops
        monkeypatch.undo()


def test_drops_by_method(decoder):
    def sizes(**spec):
        method = build.build({"peak": 20, "n_sink": 2, **spec})
        return [count for _, count in run(decoder, draw(1, 120, 31), method).drops]

    lazy = sizes(name="lazy_prune", compression_interval=8)
    assert set(lazy) == {8}
    portions = sizes(name="max_drop", compression_interval=8, max_drop=3)
    assert max(portions) == 3
    halves = sizes(name="overlap", compression_interval=8, overlap=3)
    assert set(halves) == {5, 3}
    bound = sizes(name="slack", compression_interval=8, slack=3)
    assert set(bound) == {1, 3}


def test_refresh_keeps_what_its_selector_likes(decoder, monkeypatch):
    method = build.build(
        {
            "name": "refresh",
            "peak": 20,
            "n_sink": 2,
            "compression_interval": 5,
            "refresh_budget": 3,
            "selector": "structural",
        }
    )
    tokens = torch.ones(1, TOKENS, dtype=torch.long)
    tokens[0, [4, 9, 13, 20]] = 8  # a multiple of four: structural
    _, cache = spied_run(monkeypatch, decoder, tokens, method, structural=STRUCTURAL)
    assert cache.ids[0, 0, 2:5].tolist() == [9, 13, 20]


def test_ties_evict_the_oldest():
    assert lowest(torch.zeros(2, 7), 3).tolist() == [[0, 1, 2]] * 2
    assert lowest(torch.tensor([1.0, 0, 0, 2, 0]), 2).tolist() == [1, 2]
    with pytest.raises(BadMethod, match="NaN"):
        lowest(torch.tensor([1.0, float("nan")]), 1)


def test_an_absolute_stream_is_told_from_one_inside_the_cache(decoder):
    spec = {"name": "lazy_prune", "peak": 12, "n_sink": 2, "compression_interval": 4}
    tokens = draw(2, TOKENS, 31)
    inside = run(decoder, tokens, build.build(spec))
    absolute = run(decoder, tokens, build.build(spec | {"absolute": True}))
    assert np.abs(inside.nll - absolute.nll)[:, :11].max() < 1e-9
    assert np.abs(inside.nll - absolute.nll).max() > 1e-3


@pytest.mark.parametrize("spec", list(specs()), ids=str)
def test_nothing_leaks_from_one_stream_to_the_next(decoder, spec):
    method = build.build(spec)
    first, second = streams(method, 1, seed=5), streams(method, 1, seed=6)
    alone = run(decoder, second, method, structural=STRUCTURAL)
    run(decoder, first, method, structural=STRUCTURAL)
    again = run(decoder, second, method, structural=STRUCTURAL)
    assert (alone.nll == again.nll).all()
    assert alone.drops == again.drops
    if not method.one_row and spec["name"] != "random_eviction":
        both = run(decoder, torch.cat([first, second]), method, structural=STRUCTURAL)
        np.testing.assert_allclose(both.nll[1:], alone.nll, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "lazy_prun", "peak": 64}, "Did you mean 'lazy_prune'"),
        ({"name": "lazy_prune", "peak": 64, "compression_intervall": 8}, "compression_interval"),
        ({"name": "lazy_prune", "peak": 64, "compression_interval": 64}, "leaves a window"),
        ({"name": "lazy_prune", "peak": 12, "n_sink": 8}, "leaves a window"),
        ({"name": "lazy_prune", "peak": 64, "compression_interval": 0}, "set it to 1 or more"),
        ({"name": "max_drop", "peak": 64, "max_drop": 1}, "set it to 2 or more"),
        ({"name": "overlap", "peak": 64, "compression_interval": 8}, "needs overlap"),
        ({"name": "overlap", "peak": 64, "compression_interval": 8, "overlap": 8}, "below"),
        (
            {"name": "refresh", "peak": 64, "refresh_budget": 4, "selector": "unifrom"},
            "Did you mean 'uniform'",
        ),
        ({"name": "tova", "peak": 64, "recent": 64}, "lower it"),
        ({"name": "adaptive", "peak": 64, "early": 0.0}, "set it above 0"),
    ],
)
def test_bad_points_are_refused(spec, message):
    with pytest.raises(BadMethod, match=message):
        build.build(spec)


def test_points_are_expanded():
    settings = {
        "grid": [{"peak": 128, "compression_interval": [8, 32]}],
        "sweep": [{"peak": 64, "compression_interval": [2]}],
        "points": [
            {"name": "full"},
            {"name": "streaming_llm"},
            {"name": "lazy_prune", "sweep": True},
            {"name": "max_drop", "max_drop": [None, 0.25]},
        ],
        "programme": {"compression_interval": []},
    }
    found = build.specs_of(settings)
    assert found[0] == {"name": "full", "peak": 128}
    assert found[1] == {"name": "streaming_llm", "peak": 128}
    assert found[4] == {"name": "lazy_prune", "peak": 64, "compression_interval": 2}
    assert len(found) == 2 + 3 + 4
    assert {spec.get("max_drop") for spec in found[5:]} == {None, 2, 8}
    ids = [build.point_id(build.build(spec)) for spec in found]
    assert len(set(ids)) == len(ids)
    assert "max_drop-P128-R32-max_drop=8" in ids
