import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.cache.base import BadCacheUse, CacheFull
from ember.cache.contiguous import ContiguousCache
from tests.tiny import tiny

ARCH = tiny(head_dim=4, vocab_size=8, max_positions=32)


def draw(tokens: int, batch: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 2, tokens, 4, generator=generator).unbind()


def append(cache: ContiguousCache, layer: int, k, v):
    """An update with keys (B, Hkv, T, D) that are rotated already."""
    found = cache.update(layer, k.transpose(1, 2), v.transpose(1, 2), _turned, None)
    assert found.bias is None
    return found.k, found.v


def _turned(k):
    return k.transpose(1, 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["update", "truncate", "write"]), st.integers(0, 6)
        ),
        max_size=12,
    )
)
def test_any_sequence_of_operations_equals_concatenated_tensors(operations):
    cache = ContiguousCache(ARCH, 2, 100)
    model = {layer: torch.zeros(2, 2, 2, 0, 4) for layer in range(3)}
    for step, (layer, name, amount) in enumerate(operations):
        length = cache.length(layer)
        if name == "update":
            k, v = draw(amount, seed=step)
            model[layer] = torch.cat([model[layer], torch.stack([k, v])], 3)
            torch.testing.assert_close(torch.stack(append(cache, layer, k, v)), model[layer])
        elif name == "truncate":
            cache.truncate(min(amount, length), [layer])
            model[layer] = model[layer][:, :, :, : min(amount, length)]
        else:
            start = min(amount, length)
            k, v = draw(2, seed=step)
            cache.write(layer, start, k, v)
            rest = model[layer][:, :, :, start + 2 :]
            model[layer] = torch.cat([model[layer][:, :, :, :start], torch.stack([k, v]), rest], 3)
        for each in range(3):
            assert cache.length(each) == model[each].shape[3]
            torch.testing.assert_close(torch.stack(cache.read(each)), model[each])


def test_overflow_names_the_capacity_and_changes_nothing():
    cache = ContiguousCache(ARCH, 2, 5)
    append(cache, 0, *draw(4))
    with pytest.raises(CacheFull, match=r"6 tokens(.|\n)*capacity is 5(.|\n)*capacity=6"):
        append(cache, 0, *draw(2))
    assert cache.length(0) == 4


def test_segment_has_the_prefix_caches_layout():
    cache = ContiguousCache(ARCH, 2, 8)
    for layer in range(3):
        append(cache, layer, *draw(5, seed=layer))
    segment = cache.segment(1, 2, 5)
    assert segment.shape == (3, 2, 2, 3, 4)
    for layer in range(3):
        torch.testing.assert_close(segment[layer, 0], cache.read(layer)[0][1, :, 2:5])
        torch.testing.assert_close(segment[layer, 1], cache.read(layer)[1][1, :, 2:5])
    with pytest.raises(BadCacheUse, match="holds 5"):
        cache.segment(0, 0, 6)


def test_one_row_is_written_to_all():
    cache = ContiguousCache(ARCH, 3, 8)
    k, v = draw(2, batch=1)
    cache.write(0, 0, k, v)
    torch.testing.assert_close(cache.read(0)[0], k.expand(3, -1, -1, -1))


def test_layers_fill_independently_and_others_are_refused():
    cache, layers = ContiguousCache(ARCH, 1, 8), ARCH.num_layers
    append(cache, 1, *draw(3, batch=1))
    assert (cache.length(0), cache.length(1)) == (0, 3)
    for layer in (-1, layers):
        with pytest.raises(BadCacheUse, match=f"layer {layer} is not in this cache"):
            append(cache, layer, *draw(3, batch=1))


def test_gaps_and_foreign_positions_are_refused():
    cache = ContiguousCache(ARCH, 2, 8)
    with pytest.raises(BadCacheUse, match="cannot write at 1"):
        cache.write(0, 1, *draw(1))
    with pytest.raises(BadCacheUse, match="cannot read"):
        cache.read(0, 0, 1)
    with pytest.raises(BadCacheUse, match="cannot truncate"):
        cache.truncate(1)
    with pytest.raises(ValueError, match="must be 1 or more"):
        ContiguousCache(ARCH, 0, 8)


def test_gradients_are_refused():
    cache = ContiguousCache(ARCH, 2, 8)
    k, v = draw(1)
    with pytest.raises(BadCacheUse, match="keeps no gradients"):
        append(cache, 0, k.requires_grad_(), v)


def test_reset_advance_and_bytes():
    cache = ContiguousCache(ARCH, 2, 8)
    assert cache.bytes == 8 * 2 * ARCH.kv_bytes_per_token(4)
    cache.advance(3)
    assert cache.length(2) == 3
    with pytest.raises(CacheFull, match="9 tokens"):
        cache.advance(6)
    cache.reset()
    assert cache.length(2) == 0
