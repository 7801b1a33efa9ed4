"""The slotted cache: runs never overlap, freed memory comes back, sizes keep to the budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ember.cache.base import BadCacheUse
from ember.cache.slotted import Size, SlottedCache, size_for
from ember.measure.memory import NotEnoughMemory
from tests.tiny import tiny

ARCH = tiny(num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=7)


def make(prompt_tokens=20, rows=3, row_tokens=4) -> SlottedCache:
    return SlottedCache(ARCH, prompt_tokens=prompt_tokens, rows=rows, row_tokens=row_tokens)


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30))
def test_runs_in_use_never_overlap_and_what_is_freed_serves_again(steps):
    cache, held = make(), []
    for length, give_back in steps:
        if give_back and held:
            cache.free(held.pop(length % len(held)))
        run = cache.reserve(length)
        gaps = [0, *(at for r in held for at in (r.start, r.start + r.length)), 20]
        gaps = sorted(gaps)
        widest = max(b - a for a, b in zip(gaps[::2], gaps[1::2], strict=True))
        assert (run is not None) == (length <= widest)
        if run is not None:
            held.append(run)
        taken = [t for r in held for t in range(r.start, r.start + r.length)]
        assert len(taken) == len(set(taken))
        assert all(0 <= t < 20 for t in taken)
    assert cache.bytes_used(1) == (len(taken if steps else []) + 4) * ARCH.kv_bytes_per_token(4)


def test_a_view_writes_into_its_run_alone():
    cache = make()
    cache.reserve(5)
    run = cache.reserve(3)
    view = cache.view(run)
    for layer in range(2):
        view.write(layer, 0, torch.ones(1, 1, 3, 4), torch.full((1, 1, 3, 4), 2.0))
    keys, values = cache.view(run).kv[1, :, 0]
    assert keys.unique().tolist() == [1.0]
    assert values.unique().tolist() == [2.0]
    assert cache.prompts.sum() == (1 + 2) * 2 * 3 * 4


def test_a_row_moves_as_far_as_it_goes():
    cache = make()
    cache.rows[:, :, 2] = 3.0
    cache.move(2, 0, 2)
    assert cache.rows[:, :, 0, :, :2].unique().tolist() == [3.0]
    assert cache.rows[:, :, 0, :, 2:].count_nonzero() == 0


def test_wrong_use_is_refused():
    cache = make()
    run = cache.reserve(20)
    with pytest.raises(BadCacheUse, match="arena of 20"):
        cache.reserve(21)
    cache.free(run)
    with pytest.raises(BadCacheUse, match="not in use"):
        cache.free(run)
    with pytest.raises(ValueError, match=r"rows \(0\)"):
        make(rows=0)


def test_sizes_follow_the_requests_and_the_budget():
    ample = {"budget_tokens": 10**6, "token_bytes": 1000}
    # 8 rows of 4 candidates each: two prompts run, the next one waits beside them.
    assert size_for([100] * 9, [4] * 9, 60, rows=8, **ample) == Size(320, 8, 64)
    assert size_for([100], [4], 64, rows=4, **ample) == Size(128, 4, 64)
    short = {"budget_tokens": 400, "token_bytes": 1000}
    assert size_for([100] * 9, [4] * 9, 60, rows=8, **short) == Size(144, 4, 64)
    with pytest.raises(NotEnoughMemory, match=r"100 tokens and a row of 64(.|\n)*cache_bytes"):
        size_for([100], [1], 60, rows=1, budget_tokens=163, token_bytes=1000)
