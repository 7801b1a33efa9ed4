"""Adapters by name: switching, versions, the prefix cache, and packed weights."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.lora import merge
from ember.lora.adapter import BadAdapter
from ember.lora.peft import save_adapter
from ember.lora.store import AdapterStore
from ember.model.version import version
from tests.lora.adapters import adapter_of, bits, equal_bits, logits
from tests.tiny import wild

PROMPT = [5, 9, 2, 40, 41, 3, 3, 17]


def engine_of(decoder, **options) -> Engine:
    cache = RadixCache(budget_bytes=1 << 20)
    return Engine(decoder, capacity=256, prefill=PrefixPrefill(cache), **options)


def tokens_of(engine: Engine):
    [[completion]] = engine.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=6))
    return completion


def test_the_engine_sees_each_switch_as_if_it_were_made_for_it():
    decoder = wild()
    engine = engine_of(decoder)
    base = tokens_of(engine)  # packs the weights, makes the step
    before = engine.backend
    store = AdapterStore(decoder, engine=engine)
    for seed in (1, 2):
        store.load(f"seed-{seed}", adapter_of(decoder, seed, b_std=0.5))
    assert engine.weights_version == "base"
    for name, seed in (("seed-1", 1), ("seed-2", 2), ("seed-1", 1)):
        now = store.activate(name)
        found = tokens_of(engine)
        other = wild()
        alone = AdapterStore(other)
        alone.load("only", adapter_of(other, seed, b_std=0.5))
        alone.activate("only")
        wanted = tokens_of(engine_of(other))
        assert found.tokens == wanted.tokens
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
        assert found.tokens != base.tokens
        assert set(found.versions) == {now} == {engine.weights_version}
        assert now == f"base+{store.adapter(name).hash[:16]}"
        assert found.cached_tokens == 0, "the prefix cache forgot other weights' KV"
        assert tokens_of(engine).cached_tokens > 0
    assert engine.backend is before, "nothing was packed or captured anew"
    assert store.deactivate() == "base"
    assert tokens_of(engine).tokens == base.tokens
    assert set(tokens_of(engine).versions) == {"base"}


@pytest.mark.parametrize("keep", merge.KEEPS)
def test_without_an_engine_a_switch_leaves_no_stale_kv_in_a_prefix_cache(keep):
    decoder = wild()
    engine = engine_of(decoder)
    store = AdapterStore(decoder, keep=keep)
    for seed in (1, 2):
        store.load(f"seed-{seed}", adapter_of(decoder, seed, b_std=0.5))
    tokens_of(engine)
    for name in ("seed-1", "seed-2", None, "seed-1"):
        store.deactivate() if name is None else store.activate(name)
        found = tokens_of(engine)
        assert found.cached_tokens == 0
        assert found.tokens == tokens_of(Engine(decoder, capacity=256)).tokens
        assert tokens_of(engine).cached_tokens == len(PROMPT) - 1


def test_unloading_leaves_the_base_of_a_packed_decoder_bit_for_bit():
    decoder = wild(dtype=torch.bfloat16)
    before = bits(decoder)
    engine = engine_of(decoder)
    store = AdapterStore(decoder, engine=engine)
    store.load("a", adapter_of(decoder, 1))
    store.activate("a")
    tokens_of(engine)  # packed while the adapter is merged
    store.load("b", adapter_of(decoder, 2))
    store.activate("b")
    tokens_of(engine)
    store.unload("b")
    assert store.active is None
    assert [loaded.name for loaded in store.list()] == ["a"]
    assert equal_bits(decoder, before)


def test_a_new_adapter_of_the_same_name_takes_its_place():
    decoder = wild()
    engine = engine_of(decoder)
    store = AdapterStore(decoder, engine=engine)
    store.load("policy", adapter_of(decoder, 1))
    first = store.activate("policy")
    with pytest.raises(BadAdapter, match="loaded already"):
        store.load("policy", adapter_of(decoder, 2))
    loaded = store.load("policy", adapter_of(decoder, 2), replace=True)
    assert loaded.active
    assert engine.weights_version == loaded.version != first
    other = wild()
    alone = AdapterStore(other)
    alone.load("x", adapter_of(other, 2))
    alone.activate("x")
    assert equal_bits(decoder, bits(other))


def test_load_activate_deactivate_unload_list(tmp_path):
    decoder = wild()
    base = logits(decoder)
    folder = save_adapter(adapter_of(decoder), tmp_path / "saved", arch=decoder.arch)
    store = AdapterStore(decoder)
    loaded = store.load("full", folder)
    store.load("half", folder, scale=0.5)
    assert (loaded.rank, loaded.layers, loaded.active) == (4, (0, 1, 2), False)
    assert loaded.bytes == 4 * 4 * 3 * (64 + 48 + 48 + 64)
    store.activate("full")
    full = logits(decoder)
    store.activate("half")
    half = logits(decoder)
    assert [item.active for item in store.list()] == [False, True]
    assert not torch.allclose(full, half, atol=1e-3)
    store.load("half", folder, replace=True)
    assert torch.allclose(logits(decoder), full, atol=1e-5)
    store.unload("half")
    assert torch.equal(logits(decoder), base)
    with pytest.raises(BadAdapter, match="no adapter 'half'"):
        store.activate("half")
    assert store.base_bytes > 0


@pytest.mark.parametrize("stage", ["load", "swap"])
def test_a_failed_swap_leaves_the_engine_as_it_was(stage, tmp_path, monkeypatch):
    decoder = wild()
    engine = engine_of(decoder)
    store = AdapterStore(decoder, engine=engine)
    store.load("good", adapter_of(decoder, 1))
    store.activate("good")
    tokens_of(engine)
    before = tokens_of(engine)  # with the prompt's prefix from the cache, as later
    answer, told = logits(decoder), engine.weights_version
    if stage == "load":
        wide = wild(hidden_size=64)
        folder = save_adapter(adapter_of(wide), tmp_path / "wide", arch=wide.arch)
        with pytest.raises(BadAdapter, match="trained on this base model"):
            store.load("good", folder, replace=True)
    else:
        store.load("next", adapter_of(decoder, 2))
        real, calls = merge._add, []

        def failing(*arguments):
            calls.append(1)
            if len(calls) == 6:
                raise RuntimeError("interrupted")
            real(*arguments)

        monkeypatch.setattr(merge, "_add", failing)
        with pytest.raises(RuntimeError, match="interrupted"):
            store.activate("next")
    assert torch.equal(logits(decoder), answer)
    assert engine.weights_version == told
    assert store.active == "good"
    after = tokens_of(engine)
    assert (after.tokens, after.logprobs) == (before.tokens, before.logprobs)
    assert after.cached_tokens > 0, "what was cached is still valid"


def test_an_engine_needs_adapters_of_its_own_decoder():
    with pytest.raises(BadAdapter, match="own decoder"):
        AdapterStore(wild(), engine=engine_of(wild()))


def test_versions_without_an_engine_are_the_content_of_the_base_and_of_the_adapter():
    decoder = wild()
    store = AdapterStore(decoder)
    assert store.version == version(decoder) != version(wild(seed=1))
    store.load("a", adapter_of(decoder, 1))
    first = store.activate("a")
    assert first == f"{version(wild())}+{store.adapter('a').hash[:16]}"
    assert version(decoder) != version(wild()), "whoever caches KV sees the switch"
    assert store.deactivate() == version(decoder) == version(wild())


def test_a_base_changed_while_nothing_is_active_has_another_version_and_stays():
    decoder = wild()
    store = AdapterStore(decoder)
    store.load("a", adapter_of(decoder, 1))
    before = store.activate("a")
    store.deactivate()
    with torch.no_grad():
        decoder.layers[0].self_attn.q_proj.weight.mul_(2)
    changed = bits(decoder)
    assert store.activate("a") != before
    store.deactivate()
    assert equal_bits(decoder, changed)


def test_the_copies_of_the_base_can_be_dropped():
    decoder = wild()
    store = AdapterStore(decoder)
    store.load("a", adapter_of(decoder, 1))
    store.activate("a")
    assert store.base_bytes > 0
    store.forget_base()
    assert (store.base_bytes, store.active) == (0, None)
    decoder.layers[0].self_attn.q_proj.weight.data.mul_(2)
    before = bits(decoder)
    store.activate("a")
    store.deactivate()
    assert equal_bits(decoder, before)
