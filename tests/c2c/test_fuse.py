"""Fusion on caches: what changes, and what must not."""

from dataclasses import replace

import pytest
import torch

from ember.c2c.fuse import SectionCache, fuse
from ember.c2c.pair import read, share
from ember.cache.base import BadCacheUse
from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from tests import tiny
from tests.c2c import small


def tokens_of(count: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(small.WORLD.vocab_size, (rows, count), generator=generator)


def source_of(pair, tokens, layers=None):
    index = torch.arange(tokens.shape[1]).expand(tokens.shape)
    layers = layers or tuple(sorted(set(pair.fuser.sources)))
    return share(pair.sharer, tokens, index, layers, rotated=pair.fuser.rotated)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_sections_through_the_cache_are_the_decoder_in_one_piece(name, rotated):
    decoder = tiny.wild(name)
    tokens = torch.randint(decoder.arch.vocab_size, (2, 12))
    whole = decoder(tokens)
    cache = SectionCache(decoder.arch, rotated)
    with torch.inference_mode():
        parts = [decoder(part, cache=cache) for part in tokens.split((5, 1, 6), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rotated", [True, False])
def test_padding_changes_nothing(rotated):
    decoder = random_decoder(Architecture.make(**small.SIZES | small.RECEIVER), 0)
    tokens = tokens_of(9)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False  # row 1: tokens 0 1 2, padding, then 5 6 7 8
    cache = SectionCache(decoder.arch, rotated)
    with torch.inference_mode():
        cache.expect(real)
        decoder(tokens[:, :5], cache=cache)
        cache.expect(torch.ones(2, 4, dtype=torch.bool))
        found = decoder(tokens[:, 5:], cache=cache)
        alone = decoder(torch.cat([tokens[1:, :3], tokens[1:, 5:]], 1))[:, 3:]
        first = decoder(tokens[:1])[:, 5:]
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:1], first, atol=1e-5, rtol=1e-5)


def test_padded_batches_of_sliding_layers_are_refused():
    cache = SectionCache(tiny.tiny("gemma3_text"), True)
    with pytest.raises(BadCacheUse, match="no padded batches"):
        cache.expect(torch.ones(1, 2, dtype=torch.bool))


def test_an_untrained_fuser_is_the_receiver_alone_bit_for_bit():
    pair, tokens = small.pair(opened=False, rotated=True), tokens_of(12)
    with torch.inference_mode():
        source = source_of(pair, tokens[:, :9])
        cache = read(pair.receiver, tokens[:, :9], True)
        own = cache.section(0, 9)
        cache.replace(0, fuse(pair.fuser, own, source, torch.ones_like(source.tokens)))
        hidden = pair.receiver.embed(tokens)[:, 9:]
        fused = pair.receiver.decoder(hidden=hidden, cache=cache)
        plain = ContiguousCache(pair.receiver.arch, 2, 12)
        embedded = pair.receiver.embed(tokens)
        pair.receiver.decoder(hidden=embedded[:, :9], cache=plain)
        alone = pair.receiver.decoder(hidden=embedded[:, 9:], cache=plain)
    assert torch.equal(pair.receiver.decoder.logits(fused), pair.receiver.decoder.logits(alone))


def test_only_tokens_that_are_sent_and_fused_change():
    pair, tokens = small.pair(), tokens_of(10)
    source = source_of(pair, tokens)
    sent = torch.rand(2, 10) < 0.5
    mask = torch.rand(2, 10) < 0.5
    own = read(pair.receiver, tokens, False).section(0, 10)
    fused = fuse(pair.fuser, own, replace(source, tokens=sent), mask)
    for mine, made in zip(own, fused, strict=True):
        for before, after in zip(mine, made, strict=True):
            changed = (before != after).flatten(2).any(-1)
            assert torch.equal(changed, sent & mask)


def test_what_is_added_is_the_gate_times_what_the_branch_gives():
    pair, tokens = small.pair(), tokens_of(6)
    pair.fuser[1].key.gate.data.fill_(-1.0)
    source = source_of(pair, tokens)
    own = read(pair.receiver, tokens, False).section(0, 6)
    fused = fuse(pair.fuser, own, source, torch.ones_like(source.tokens))
    for number, layer in enumerate(pair.fuser):
        keys, values = source.of(pair.fuser.sources[number])
        expected = own[number][0]
        if number != 1:
            expected = expected + layer.key(keys, own[number][0])
        torch.testing.assert_close(fused[number][0], expected)
        torch.testing.assert_close(
            fused[number][1], own[number][1] + layer.value(values, own[number][1])
        )


def test_sparse_fusion_is_dense_fusion():
    pair, tokens = small.pair(), tokens_of(10)
    source = replace(source_of(pair, tokens), tokens=torch.rand(2, 10) < 0.4)
    own = read(pair.receiver, tokens, False).section(0, 10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    dense, sparse = (fuse(pair.fuser, own, source, mask, sparse=on) for on in (False, True))
    for one, other in zip(dense, sparse, strict=True):
        torch.testing.assert_close(one[0], other[0])
        torch.testing.assert_close(one[1], other[1])


def test_soft_gates_carry_gradients_to_fuser_and_gates():
    pair, tokens = small.pair(opened=False, noise="gumbel"), tokens_of(6)
    pair.fuser.requires_grad_(True)
    source = source_of(pair, tokens)
    own = read(pair.receiver, tokens, False).section(0, 6)
    gates = pair.fuser.soft_gates(1.0, 2, 6)
    fused = fuse(pair.fuser, own, source, torch.ones_like(source.tokens), gates=gates)
    sum(k.square().sum() + v.square().sum() for k, v in fused).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.fuser.parameters())


def test_gates_are_read_from_the_device_once_for_all_layers(monkeypatch):
    """A scalar read of each layer's gate would wait for the device in every layer."""
    pair, tokens = small.pair(), tokens_of(6)
    source = source_of(pair, tokens)
    own = read(pair.receiver, tokens, False).section(0, 6)
    reads = []

    def counted(name, plain):
        def call(self, *args):
            reads.append(name)
            return plain(self, *args)

        return call

    for name in ("item", "tolist", "__bool__", "cpu", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    fuse(pair.fuser, own, source, torch.ones_like(source.tokens))
    assert reads == ["tolist"]


def test_bytes_are_those_of_the_sharers_shape_and_of_used_layers():
    pair, tokens = small.pair(), tokens_of(6)
    source = source_of(pair, tokens, (0, 2))
    assert source.token_bytes(2) == 2 * 2 * 2 * 1 * 8  # bytes, keys and values, layers, heads, size
    published = Architecture.make("qwen2.5-0.5b")
    assert published.kv_bytes_per_token(2) == 12_288
    assert published.head_dim == 64
