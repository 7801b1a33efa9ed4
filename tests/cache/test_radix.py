"""RadixCache against a naive model: contents, exact bytes, budget, pins, eviction order."""

import functools
import hashlib

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ember.cache.contiguous import ContiguousCache
from ember.cache.radix import BadSegment, RadixCache
from tests.tiny import tiny

LAYERS, HEADS, DIM = 2, 1, 2
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 4


@functools.cache
def token_value(namespace, prefix):
    """The 'KV' of the last token of `prefix`: like real KV it depends on all tokens before it."""
    digest = hashlib.sha256(repr((namespace, tuple(prefix))).encode()).digest()
    values = torch.tensor(list(digest[: LAYERS * 2 * HEADS * DIM]), dtype=torch.float32)
    return values.view(LAYERS, 2, HEADS, 1, DIM)


def source(namespace, tokens):
    def kv(start, stop):
        return torch.cat(
            [token_value(namespace, tokens[: i + 1]) for i in range(start, stop)], dim=3
        )

    return kv


def insert(cache, namespace, tokens):
    return cache.insert(namespace, tokens, source(namespace, tokens))


def content(match):
    return torch.cat([kv for _, kv in match.segments], dim=3)


def check_content(match, namespace, tokens):
    starts = [start for start, _ in match.segments]
    lengths = [kv.shape[3] for _, kv in match.segments]
    assert starts == [sum(lengths[:i]) for i in range(len(lengths))]
    assert sum(lengths) == match.length
    if match.length:
        assert torch.equal(content(match), source(namespace, tokens)(0, match.length))


def live_nodes(cache):
    return list(cache._order)


def length_stored(cache, namespace, tokens):
    """What a match would find, without touching order or statistics."""
    with_tree = cache._roots.get(namespace)
    if with_tree is None:
        return 0
    return cache._descend(with_tree, torch.tensor(tokens).numpy())[1]


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
NAMESPACES = st.sampled_from(["v0", "v1"])


class RadixAgainstDictionary(RuleBasedStateMachine):
    """The model: the set of stored (namespace, prefix) pairs, each worth TOKEN_BYTES."""

    @initialize(budget_tokens=st.integers(0, 40), spare=st.integers(0, TOKEN_BYTES - 1))
    def start(self, budget_tokens, spare):
        self.cache = RadixCache(budget_tokens * TOKEN_BYTES + spare)
        self.budget_tokens = budget_tokens
        self.inserted = set()  # (namespace, tokens) ever inserted since the last invalidation
        self.stored = set()  # (namespace, prefix)
        self.open = []  # (match, namespace, tokens, valid)
        self.looked_up = [0, 0, 0]  # hits, partial hits, misses

    def stored_now(self):
        return {
            (namespace, tokens[:n])
            for namespace, tokens in self.inserted
            for n in range(1, length_stored(self.cache, namespace, tokens) + 1)
        }

    def orphan_tokens(self):
        """Tokens of invalidated namespaces that an open match still holds, each counted once."""
        orphans = {id(n): n for m, *_, live in self.open if not live for n in self.path(m)}
        return sum(len(n.tokens) for n in orphans.values())

    @staticmethod
    def path(match):
        node, nodes = match._node, []
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def insert(self, namespace, tokens):
        tokens = tuple(tokens)
        kept = insert(self.cache, namespace, tokens)
        new = {(namespace, tokens[:n]) for n in range(1, len(tokens) + 1)}
        self.inserted.add((namespace, tokens))
        now = self.stored_now()
        assert now <= self.stored | new
        assert {(namespace, tokens[:n]) for n in range(1, kept + 1)} <= now
        if len(self.stored | new) + self.orphan_tokens() <= self.budget_tokens:
            assert now == self.stored | new, "nothing may be evicted while there is room"
            assert kept == len(tokens)
        self.stored = now

    @rule(namespace=NAMESPACES, tokens=TOKENS, keep=st.booleans())
    def match(self, namespace, tokens, keep):
        tokens = tuple(tokens)
        expected = max(
            (n for n in range(len(tokens) + 1) if (namespace, tokens[:n]) in self.stored),
            default=0,
        )
        match = self.cache.match(namespace, tokens)
        assert match.length == expected
        check_content(match, namespace, tokens)
        kind = 2 if expected == 0 else 0 if expected == len(tokens) else 1
        self.looked_up[kind] += 1
        if keep:
            self.open.append((match, namespace, tokens, True))
        else:
            match.release()
            assert match.segments == []

    @rule(data=st.data())
    def release(self, data):
        if self.open:
            index = data.draw(st.integers(0, len(self.open) - 1))
            self.open.pop(index)[0].release()

    @rule(namespace=st.one_of(st.none(), NAMESPACES))
    def invalidate(self, namespace):
        dropped = len(live_nodes(self.cache))
        assert self.cache.invalidate(namespace) == dropped - len(live_nodes(self.cache))
        gone = ("v0", "v1") if namespace is None else (namespace,)
        self.inserted = {item for item in self.inserted if item[0] not in gone}
        self.stored = {item for item in self.stored if item[0] not in gone}
        self.open = [(m, n, t, live and n not in gone) for m, n, t, live in self.open]
        assert self.stored_now() == self.stored

    @invariant()
    def bytes_are_exact_and_within_budget(self):
        stats = self.cache.stats
        assert stats.bytes <= self.cache.budget_bytes
        assert stats.bytes == (len(self.stored) + self.orphan_tokens()) * TOKEN_BYTES
        nodes = live_nodes(self.cache)
        assert stats.nodes == len(nodes)
        assert stats.bytes - self.orphan_tokens() * TOKEN_BYTES == sum(
            node.kv.untyped_storage().nbytes() for node in nodes
        )

    @invariant()
    def pinned_segments_stay(self):
        for match, namespace, tokens, live in self.open:
            check_content(match, namespace, tokens)
            if live:
                assert length_stored(self.cache, namespace, tokens) >= match.length

    @invariant()
    def parents_are_younger_than_children(self):
        age = {node: i for i, node in enumerate(live_nodes(self.cache))}
        for node in age:
            for child in node.children.values():
                assert age[child] < age[node]
                assert child.pins <= node.pins

    @invariant()
    def statistics_add_up(self):
        stats = self.cache.stats
        assert [stats.hits, stats.partial_hits, stats.misses] == self.looked_up
        assert stats.lookups == sum(self.looked_up)
        lost = stats.evicted_bytes + stats.invalidated_bytes
        live = sum(node.bytes for node in live_nodes(self.cache))
        assert stats.inserted_tokens * TOKEN_BYTES - lost == live

    def teardown(self):
        for match, *_ in getattr(self, "open", []):
            match.release()
        if hasattr(self, "cache"):
            self.cache.invalidate()
            assert self.cache.stats.bytes == 0
            assert self.cache.stats.nodes == 0


RadixAgainstDictionary.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
TestRadixAgainstDictionary = RadixAgainstDictionary.TestCase


def test_full_partial_and_missed_lookups_are_told_apart():
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2, 3, 4))
    for tokens, length in [((1, 2, 3), 3), ((1, 2, 9), 2), ((5,), 0)]:
        with cache.match("v0", tokens) as match:
            assert match.length == length
    stats = cache.stats
    assert (stats.hits, stats.partial_hits, stats.misses) == (1, 1, 1)
    assert (stats.tokens_hit, stats.tokens_missed) == (5, 2)


def test_only_the_missing_tokens_are_asked_for():
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2, 3, 4))
    asked = []
    tokens = (1, 2, 7, 8, 9)

    def watching(start, stop):
        asked.append((start, stop))
        return source("v0", tokens)(start, stop)

    cache.insert("v0", tokens, watching)
    cache.insert("v0", tokens, watching)
    assert asked == [(2, 5)]
    assert cache.stats.nodes == 3
    assert cache.stats.bytes == 7 * TOKEN_BYTES


def test_least_recently_used_leaf_goes_first():
    cache = RadixCache(6 * TOKEN_BYTES)
    for first in (1, 2, 3):
        insert(cache, "v0", (first, 0))
    cache.match("v0", (1, 0)).release()
    insert(cache, "v0", (4, 0))
    assert [length_stored(cache, "v0", (first, 0)) for first in (1, 2, 3, 4)] == [2, 0, 2, 2]
    assert cache.stats.evictions == 1
    assert cache.stats.evicted_bytes == 2 * TOKEN_BYTES


def test_a_shared_prefix_outlives_the_suffixes_below_it():
    cache = RadixCache(8 * TOKEN_BYTES)
    for suffix in range(10):
        insert(cache, "v0", (1, 1, 1, 1, 10 + suffix, 20 + suffix))
    assert length_stored(cache, "v0", (1, 1, 1, 1)) == 4
    assert cache.stats.evictions == 8


def test_a_pinned_prefix_is_never_evicted_and_the_rest_is_rejected():
    cache = RadixCache(4 * TOKEN_BYTES)
    insert(cache, "v0", (1, 2, 3))
    with cache.match("v0", (1, 2, 3)) as match:
        assert insert(cache, "v0", (7, 8, 9)) == 1
        check_content(match, "v0", (1, 2, 3))
        assert cache.stats.rejected_tokens == 2
    assert insert(cache, "v0", (7, 8, 9)) == 3
    assert length_stored(cache, "v0", (1, 2, 3)) == 0


def test_invalidation_keeps_a_pinned_segment_readable_and_counted():
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2, 3))
    match = cache.match("v0", (1, 2))
    assert cache.invalidate("v0") == 1
    assert cache.stats.bytes == 3 * TOKEN_BYTES
    check_content(match, "v0", (1, 2))
    assert cache.match("v0", (1, 2)).length == 0
    match.release()
    match.release()
    assert cache.stats.bytes == 0


def test_namespaces_share_nothing():
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2))
    assert cache.match("v1", (1, 2)).length == 0
    insert(cache, "v1", (1, 2))
    with cache.match("v1", (1, 2)) as match:
        check_content(match, "v1", (1, 2))
    cache.invalidate("v0")
    assert cache.match("v0", (1, 2)).length == 0
    assert cache.stats.bytes == 2 * TOKEN_BYTES
    assert cache.match("v1", (1, 2)).length == 2


def test_a_view_is_copied_so_that_bytes_stay_exact():
    cache = RadixCache(1 << 20)
    whole = source("v0", tuple(range(100)))(0, 100)
    cache.insert("v0", range(10), lambda start, stop: whole.narrow(3, start, stop - start))
    whole.zero_()
    with cache.match("v0", range(10)) as match:
        check_content(match, "v0", tuple(range(10)))
    (node,) = live_nodes(cache)
    assert node.kv.untyped_storage().nbytes() == cache.stats.bytes == 10 * TOKEN_BYTES


def test_a_segment_of_another_shape_is_refused():
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2))
    with pytest.raises(BadSegment, match="one namespace per model"):
        cache.insert("v0", (3, 4), lambda start, stop: torch.zeros(3, 2, HEADS, stop - start, DIM))
    with pytest.raises(BadSegment, match="layers, 2, kv_heads"):
        cache.insert("v1", (3, 4), lambda start, stop: torch.zeros(2, HEADS, stop - start, DIM))
    with pytest.raises(ValueError, match="negative"):
        RadixCache(-1)


def test_a_zero_budget_stores_nothing():
    cache = RadixCache(0)
    assert insert(cache, "v0", (1, 2)) == 0
    assert cache.match("v0", (1, 2)).length == 0
    assert cache.stats.bytes == cache.stats.nodes == 0


def test_copy_into_fills_every_row_and_layer():
    arch = tiny(num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM)
    cache = RadixCache(1 << 20)
    insert(cache, "v0", (1, 2, 3, 4))
    insert(cache, "v0", (1, 2, 5, 6))
    target = ContiguousCache(arch, batch=3, capacity=8)
    with cache.match("v0", (1, 2, 5)) as match:
        assert match.copy_into(target) == 3
    assert [target.length(layer) for layer in range(LAYERS)] == [3] * LAYERS
    for row in range(3):
        assert torch.equal(target.segment(row, 0, 3), source("v0", (1, 2, 5))(0, 3))
