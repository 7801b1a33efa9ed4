"""Baselines every language model must beat: a unigram and an interpolated Kneser-Ney n-gram.

Both run over the same tokens as the model and give log2 probabilities per token, so that all three
are compared in bits per byte of the same text. The n-gram is modified Kneser-Ney (Chen & Goodman
1998: three discounts per order, lower orders from continuation counts), in NumPy.
"""

from dataclasses import dataclass

import numpy as np

from ember.records.errors import EmberError


class BadNGram(EmberError):
    """Counts that no n-gram can be made from; the message says why and what to change."""


def unigram_log2_probs(train: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """log2 p of each token by its frequency in `train`, add-one smoothed; shape of `tokens`."""
    counts = np.bincount(_checked(train, vocab_size), minlength=vocab_size) + 1
    return np.log2(counts / counts.sum())[_checked(tokens, vocab_size, empty=True)]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order n.

    `keys` (sorted) = id of the first n-1 tokens × V + last token; an n-gram's id is its place in
    it. `discounted` is max(c - D(c), 0) with c the (continuation) count; `total` and `backoff_mass`
    are by context id: the sum of c, and the mass that the discounts free for the lower order.
    """

    keys: np.ndarray
    discounted: np.ndarray
    total: np.ndarray
    backoff_mass: np.ndarray


class NGram:
    """Interpolated modified Kneser-Ney over token ids.

    p_n(w | h) = (max(c(hw) - D, 0) + mass(h) · p_{n-1}(w | h')) / c(h), and p_0 is uniform, so that
    the probabilities of all tokens sum to one after any context, seen or not.
    """

    def __init__(self, orders: list[_Order], vocab_size: int):
        self._orders = orders
        self.vocab_size = vocab_size

    @property
    def order(self) -> int:
        return len(self._orders)

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab_size: int, order: int = 4) -> "NGram":
        """Counts n-grams up to `order` in one stream of token ids (N,)."""
        tokens = _checked(tokens, vocab_size)
        if order < 1:
            raise BadNGram(f"an n-gram of order {order}.\nUse an order of 1 or more.")
        order = min(order, len(tokens))
        tables, ids = [], np.zeros(len(tokens) + 1, np.int64)  # ids of the empty context
        for n in range(1, order + 1):
            keys = ids[: len(tokens) - n + 1] * vocab_size + tokens[n - 1 :]
            unique, first, ids, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            tables.append((unique, first, ids, counts))
        orders, contexts = [], 1
        for n, (keys, _, _, counts) in enumerate(tables, 1):
            if n < order:
                # Distinct tokens before the n-gram: how many longer n-grams end with it.
                _, first, _, _ = tables[n]
                suffix = tables[n - 1][2][first + 1]
                counts = np.bincount(suffix, minlength=len(keys))
            orders.append(_kneser_ney(keys, counts, keys // vocab_size, contexts))
            contexts = len(keys)
        return cls(orders, vocab_size)

    def log2_probs(self, tokens: np.ndarray) -> np.ndarray:
        """log2 p of each token of a stream (T,) given those before it."""
        tokens = _checked(tokens, self.vocab_size, empty=True)
        probs = np.full(len(tokens), 1.0 / self.vocab_size)
        ids = np.zeros(len(tokens) + 1, np.int64)  # of the n-1 tokens before each position; -1 new
        for n, table in enumerate(self._orders, 1):
            place = slice(n - 1, None)
            context = ids[: max(len(tokens) - n + 1, 0)]
            probs[place], ids = self._mix(table, context, tokens[place], probs[place])
        return np.log2(probs)

    def _mix(self, table: _Order, context, tokens, lower) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of this order over `lower`, and the ids of (context, token)."""
        found = _find(table.keys, context, tokens, self.vocab_size)
        total = np.where(context >= 0, table.total[context], 0)
        seen = total > 0
        discounted = np.where(found >= 0, table.discounted[found], 0.0)
        mixed = discounted + table.backoff_mass[context] * lower
        return np.where(seen, mixed / np.maximum(total, 1), lower), found


def _find(keys: np.ndarray, context: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Places of (context, token) in `keys`, -1 where absent."""
    wanted = context * vocab_size + tokens
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((context >= 0) & (keys[place] == wanted), place, -1)


def _kneser_ney(keys, counts, context, num_contexts: int) -> _Order:
    discounts = _discounts(counts)
    kind = np.minimum(counts, 3)
    discounted = np.maximum(counts - discounts[kind], 0.0)
    total = np.bincount(context, counts, num_contexts)
    mass = total - np.bincount(context, discounted, num_contexts)
    return _Order(keys, discounted, total, mass)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D of counts 0, 1, 2 and 3 or more, from the counts of counts; each within [0, count]."""
    n1, n2, n3, n4 = (int(np.sum(counts == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:  # too little text for the estimate
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(estimate, [0, 0.05, 0.05, 0.05], [0, 1, 2, 3])


def _checked(tokens, vocab_size: int, empty: bool = False) -> np.ndarray:
    tokens = np.asarray(tokens, dtype=np.int64).reshape(-1)
    if not len(tokens) and not empty:
        raise BadNGram("no tokens to count.\nGive the training split some text.")
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise BadNGram(
            f"token ids {tokens.min()} to {tokens.max()} do not fit a vocabulary of {vocab_size}.\n"
            "Use the tokenizer that the tokens were made with."
        )
    return tokens
