"""A prefix cache: a radix tree over token ids whose nodes own the KV of their tokens (P1-2.1).

Contract. A prompt's KV depends on its tokens and on the weights alone, so the KV of a shared
prefix may be reused for as long as the weights stay. `match` finds the longest stored prefix and
pins it, `insert` adds what is missing, `invalidate` forgets a namespace (one namespace per weights
version: nothing is shared across an update by accident). Least recently used leaves are evicted
before anything is stored, so that the bytes held never exceed the budget; pinned nodes are never
evicted.

Keys are stored as they stand in the cache they came from (rotated for the positions 0, 1, ...),
which is what makes a prefix, and only a prefix, reusable as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ember.cache.copying import copy_kv
from ember.records.errors import EmberError

KVSource = Callable[[int, int], torch.Tensor]
"""Gives the KV of tokens start..stop as one tensor (layers, 2, kv_heads, stop - start, head_dim).

A view is copied; a tensor with storage of its own is kept, so its maker must not write to it again.
"""

TOKEN_AXIS = 3


class BadSegment(EmberError):
    """A KV segment does not have the shape its tokens and its namespace ask for."""


@dataclass
class RadixStats:
    """Counters since the cache was made; `bytes` and `nodes` are what it holds now.

    A lookup is a hit (every token found), a partial hit, or a miss. `evictions` and `invalidations`
    count nodes and calls; `rejected_tokens` counts tokens that found no room under the budget.
    """

    lookups: int = 0
    hits: int = 0
    partial_hits: int = 0
    misses: int = 0
    tokens_hit: int = 0
    tokens_missed: int = 0
    insertions: int = 0
    inserted_tokens: int = 0
    rejected_tokens: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    invalidations: int = 0
    invalidated_bytes: int = 0
    bytes: int = 0
    nodes: int = 0


class _Node:
    """A run of tokens below a parent. A root has no tokens and no KV."""

    __slots__ = ("children", "kv", "live", "parent", "pins", "tokens")

    def __init__(self, parent: _Node | None, tokens: np.ndarray, kv: torch.Tensor | None):
        self.parent = parent
        self.tokens = tokens
        self.kv = kv
        self.children: dict[int, _Node] = {}
        self.pins = 0
        self.live = True  # False once invalidated: it then only waits for its pins to go

    @property
    def bytes(self) -> int:
        return 0 if self.kv is None else self.kv.nbytes


class Match:
    """The longest stored prefix of the tokens asked for, pinned until `release`.

    A context manager: `with cache.match(ns, tokens) as match: match.copy_into(kv_cache)`.
    """

    def __init__(self, cache: RadixCache, node: _Node, length: int):
        self._cache = cache
        self._node: _Node | None = node
        self.length = length

    @property
    def segments(self) -> list[tuple[int, torch.Tensor]]:
        """(start position, KV view (L, 2, Hkv, T, D)) in token order, `length` tokens in all.

        Read through the tree at each call, because a pinned node may be split by a later insert.
        Empty after release.
        """
        chain = []
        node = self._node
        while node is not None and node.kv is not None:
            chain.append(node)
            node = node.parent
        found, start = [], 0
        for node in reversed(chain):
            take = min(len(node.tokens), self.length - start)
            if take <= 0:
                break
            found.append((start, node.kv.narrow(TOKEN_AXIS, 0, take)))
            start += take
        return found

    def copy_into(self, cache) -> int:
        """Put the matched KV into every row of an empty ContiguousCache; returns `length`."""
        for start, kv in self.segments:
            stop = start + kv.shape[TOKEN_AXIS]
            # All layers in one copy: (L, 2, 1, Hkv, T, D) over (L, 2, B, Hkv, T, D).
            copy_kv(cache.kv[..., start:stop, :], kv.unsqueeze(2))
            cache.advance(stop - start)
        return self.length

    def release(self) -> None:
        """Unpin; the KV may be evicted from now on. A second call does nothing."""
        if self._node is not None:
            self._cache._unpin(self._node)
            self._node = None

    def __enter__(self) -> Match:
        return self

    def __exit__(self, *_) -> None:
        self.release()


class RadixCache:
    """Radix tree over KV segments under a byte budget; the least recently used leaf goes first."""

    def __init__(self, budget_bytes: int):
        """`budget_bytes`: upper bound of the KV held, pinned and not; 0 stores nothing."""
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes must not be negative, got {budget_bytes}")
        self.budget_bytes = int(budget_bytes)
        self.stats = RadixStats()
        self._roots: dict[str, _Node] = {}
        self._token_shape: dict[str, tuple] = {}  # namespace -> (shape of one token, dtype)
        # Every live node, oldest use first. A path is touched from its end upwards, so a parent
        # always comes after its children and the first unpinned node is always a leaf.
        self._order: OrderedDict[_Node, None] = OrderedDict()

    def match(self, namespace: str, tokens: Sequence[int]) -> Match:
        """Longest stored prefix of `tokens` in `namespace`, pinned; release it when it is copied.

        Ask for `prompt[:-1]` where the last token must be run for its logits: a repeated prompt
        then counts as a full hit.
        """
        wanted = _ids(tokens)
        node, length = self._descend(self._roots.get(namespace) or _root(), wanted)
        self._touch(node)
        self._pin(node)
        stats = self.stats
        stats.lookups += 1
        stats.tokens_hit += length
        stats.tokens_missed += len(wanted) - length
        if length == 0:
            stats.misses += 1
        elif length == len(wanted):
            stats.hits += 1
        else:
            stats.partial_hits += 1
        return Match(self, node, length)

    def insert(self, namespace: str, tokens: Sequence[int], kv_source: KVSource) -> int:
        """Store the KV of `tokens`, asking `kv_source(start, stop)` only for what is not there yet.

        Makes room first by evicting; where even that is not enough the leading tokens that fit are
        stored (the head of a prompt is what later prompts share). Returns the number of leading
        tokens of `tokens` that are stored now. Raises BadSegment for KV of a wrong shape.
        """
        wanted = _ids(tokens)
        root = self._roots.setdefault(namespace, _root())
        node, start = self._descend(root, wanted)
        self._touch(node)
        self.stats.insertions += 1
        if start == len(wanted):
            return start
        token_bytes = self._token_bytes(namespace, kv_source, start)
        self._pin(node)  # the path we are about to hang a leaf on must outlive the eviction
        try:
            self._make_room((len(wanted) - start) * token_bytes)
        finally:
            self._unpin(node)
        fits = (self.budget_bytes - self.stats.bytes) // token_bytes
        stop = min(len(wanted), start + fits)
        self.stats.rejected_tokens += len(wanted) - stop
        if stop == start:
            return start
        kv = self._owned(namespace, kv_source(start, stop), stop - start)
        depth = _depth(node)
        if depth > start:  # the tokens leave `node` in its middle
            node = self._split(node, len(node.tokens) - (depth - start))
        leaf = _Node(node, wanted[start:stop].copy(), kv)
        node.children[int(leaf.tokens[0])] = leaf
        self._add(leaf)
        self._touch(leaf)
        self.stats.inserted_tokens += stop - start
        return stop

    def invalidate(self, namespace: str | None = None) -> int:
        """Forget a namespace (or all): call it when its weights change. Returns the nodes dropped.

        A pinned segment stays readable, and its bytes counted, until its last match is released.
        """
        names = list(self._roots) if namespace is None else [namespace]
        dropped = 0
        for name in names:
            self._token_shape.pop(name, None)
            root = self._roots.pop(name, None)
            pending = list(root.children.values()) if root else []
            while pending:
                node = pending.pop()
                pending.extend(node.children.values())
                node.live = False
                del self._order[node]
                dropped += 1
                self.stats.nodes -= 1
                self.stats.invalidated_bytes += node.bytes
                if not node.pins:
                    self._free(node)
        self.stats.invalidations += 1
        return dropped

    def _descend(self, node: _Node, wanted: np.ndarray) -> tuple[_Node, int]:
        """Deepest node that shares a token with `wanted` below `node`, and the tokens shared."""
        length = 0
        while length < len(wanted):
            child = node.children.get(int(wanted[length]))
            if child is None:
                break
            shared = _common_prefix(child.tokens, wanted[length:])
            node, length = child, length + shared
            if shared < len(child.tokens):
                break
        return node, length

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut `node` before its token `at`; returns the new head.

        Both halves get storage of their own: a view would keep the whole segment in memory after
        one half is evicted, and the byte count would lie. `node` itself becomes the tail, so that
        matches, which hold the deepest node of their path, still see the whole path above it.
        """
        head = _Node(node.parent, node.tokens[:at].copy(), _clone(node.kv, 0, at))
        tail = _clone(node.kv, at, len(node.tokens))
        head.pins = node.pins
        head.children[int(node.tokens[at])] = node
        head.parent.children[int(head.tokens[0])] = head
        node.parent, node.tokens, node.kv = head, node.tokens[at:].copy(), tail
        self.stats.nodes += 1
        self._order[head] = None
        self._touch(head)
        return head

    def _token_bytes(self, namespace: str, kv_source: KVSource, start: int) -> int:
        if namespace not in self._token_shape:
            probe = kv_source(start, start + 1)
            if probe.dim() != 5 or probe.shape[1] != 2 or probe.shape[TOKEN_AXIS] != 1:
                raise BadSegment(
                    f"the KV of one token has shape {tuple(probe.shape)}\n"
                    "give (layers, 2, kv_heads, tokens, head_dim)"
                )
            self._token_shape[namespace] = (tuple(probe.shape), probe.dtype)
        shape, dtype = self._token_shape[namespace]
        return int(np.prod(shape)) * dtype.itemsize

    def _owned(self, namespace: str, kv: torch.Tensor, tokens: int) -> torch.Tensor:
        """Check `kv` against the namespace and give it storage of its own."""
        shape, dtype = self._token_shape[namespace]
        expected = (*shape[:TOKEN_AXIS], tokens, *shape[TOKEN_AXIS + 1 :])
        if tuple(kv.shape) != expected or kv.dtype != dtype:
            raise BadSegment(
                f"KV of {tokens} tokens for namespace {namespace!r} is {tuple(kv.shape)} "
                f"{kv.dtype}, expected {expected} {dtype}\n"
                "use one namespace per model and weights version"
            )
        exact = kv.untyped_storage().nbytes() == kv.numel() * kv.element_size()
        if kv.is_contiguous() and exact and not kv._is_view():
            return kv.detach()
        return _clone(kv.detach(), 0, tokens)

    def _make_room(self, needed: int) -> None:
        while self.stats.bytes + needed > self.budget_bytes:
            victim = next((node for node in self._order if not node.pins), None)
            if victim is None:
                return
            assert not victim.children, "a parent must be younger than its children"
            del victim.parent.children[int(victim.tokens[0])]
            del self._order[victim]
            victim.live = False
            self.stats.nodes -= 1
            self.stats.evictions += 1
            self.stats.evicted_bytes += victim.bytes
            self._free(victim)

    def _add(self, node: _Node) -> None:
        self._order[node] = None
        self.stats.nodes += 1
        self.stats.bytes += node.bytes

    def _free(self, node: _Node) -> None:
        self.stats.bytes -= node.bytes
        node.kv = None

    def _touch(self, node: _Node) -> None:
        while node.parent is not None:
            self._order.move_to_end(node)
            node = node.parent

    def _pin(self, node: _Node) -> None:
        while node.parent is not None:
            node.pins += 1
            node = node.parent

    def _unpin(self, node: _Node) -> None:
        while node.parent is not None:
            node.pins -= 1
            if not node.pins and not node.live:
                self._free(node)
            node = node.parent


def _root() -> _Node:
    return _Node(None, np.empty(0, dtype=np.int64), None)


def _ids(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int64).reshape(-1)


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _depth(node: _Node) -> int:
    """Tokens from the root to the end of `node`."""
    depth = 0
    while node is not None:
        depth += len(node.tokens)
        node = node.parent
    return depth


def _clone(kv: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    part = kv.narrow(TOKEN_AXIS, start, stop - start)
    return copy_kv(torch.empty(part.shape, dtype=kv.dtype, device=kv.device), part)
