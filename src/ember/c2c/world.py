"""Generated worlds in which a sharer knows what its receiver does not (spec C-0.5).

*Hard*: a passage of records `e r v` (entity, relation, value) between fillers; each model has its
own copy, in which the records that it does not know are masked. The question `Q e r A` asks for a
value. *Easy*: facts that are memorised; the passage is the question itself (`Q e r`).

All randomness is that of the generator handed in. Splits are disjoint by seed (`split_generator`).

Shapes: N passages, T their tokens, R records of each, Q questions of each passage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ember.records.errors import EmberError

STRATA = ("sharer_only", "receiver_only", "shared", "neither", "no_context")
SPLITS = {"train": 0, "tune": 1, "development": 2, "test": 3}
BOS, MASK, QUESTION, ANSWER = range(4)


class BadWorld(EmberError):
    """A world that cannot be generated."""


@dataclass(frozen=True)
class World:
    """Sizes of a hard world.

    A passage has keys from `entities_at_once` of the entities and all relations, each at most once.
    Records are sharer-only, receiver-only, shared or known to neither with the probabilities of
    `shares`. Of a record that the receiver does not know its key tokens stay with probability
    `key_kept` each, the value never. A share `no_context` of the passages has nothing but masks in
    the receiver's copy.
    """

    records: int = 20
    fillers: int = 18
    entities: int = 24
    entities_at_once: int = 5
    relations: int = 8
    values: int = 32
    filler_kinds: int = 7
    shares: tuple[float, float, float, float] = (0.5, 0.15, 0.2, 0.15)
    key_kept: float = 0.25
    no_context: float = 0.1

    def __post_init__(self):
        if self.records > self.entities_at_once * self.relations:
            raise BadWorld(
                f"{self.records} records need as many keys, and {self.entities_at_once} entities "
                f"with {self.relations} relations have fewer.\nLower records or raise either."
            )
        if abs(sum(self.shares) - 1) > 1e-6:
            raise BadWorld(f"shares {self.shares} do not add up to 1.\nMake them.")

    @property
    def first_entity(self) -> int:
        return 4 + self.filler_kinds

    @property
    def first_relation(self) -> int:
        return self.first_entity + self.entities

    @property
    def first_value(self) -> int:
        return self.first_relation + self.relations

    @property
    def vocab_size(self) -> int:
        return self.first_value + self.values

    @property
    def passage_tokens(self) -> int:
        return 1 + 3 * self.records + self.fillers

    def choices(self) -> list[int]:
        """The tokens of all values."""
        return list(range(self.first_value, self.vocab_size))

    def text(self, token: int) -> str:
        """How a token is written in a message."""
        names = ((self.first_value, "v"), (self.first_relation, "r"), (self.first_entity, "e"))
        for first, letter in names:
            if token >= first:
                return f"{letter}{token - first}"
        return ("", "_", "?", "=")[token] if token < 4 else f"f{token - 4}"


@dataclass(frozen=True)
class Passages:
    """Passages: the whole text, both copies, and what is in them.

    `full`, `union`, `sharer` and `receiver` are tokens (N, T): all records; those that either
    knows; each model's copy. `records` (N, R, 3), `known` (N, R, 2) by sharer and receiver,
    `no_context` (N,).
    """

    full: np.ndarray
    union: np.ndarray
    sharer: np.ndarray
    receiver: np.ndarray
    records: np.ndarray
    known: np.ndarray
    no_context: np.ndarray

    def strata(self) -> np.ndarray:
        """(N, R): index into STRATA of a question about each record.

        In passages without context the receiver knows nothing: what the sharer knows is
        `no_context`, the rest `neither`.
        """
        sharer, receiver = self.known[..., 0], self.known[..., 1]
        plain = np.where(sharer, np.where(receiver, 2, 0), np.where(receiver, 1, 3))
        return np.where(self.no_context[:, None], np.where(sharer, 4, 3), plain)


def split_generator(seed: int, split: str, *numbers: int) -> np.random.Generator:
    """The generator of a split of a seed's world; further `numbers` (a step, say) divide it."""
    return np.random.default_rng([seed, SPLITS[split], *numbers])


def passages(world: World, count: int, rng: np.random.Generator, *, all_known: bool = False):
    """`count` passages; `all_known`: without masks, for a curriculum's beginning."""
    w, rows = world, np.arange(count)[:, None]
    pool = rng.permuted(np.tile(np.arange(w.entities), (count, 1)), axis=1)
    keys = np.tile(np.arange(w.entities_at_once * w.relations), (count, 1))
    keys = rng.permuted(keys, axis=1)[:, : w.records]  # (N, R)
    entity = pool[rows, keys // w.relations] + w.first_entity
    relation = keys % w.relations + w.first_relation
    value = rng.integers(w.values, size=(count, w.records)) + w.first_value
    records = np.stack([entity, relation, value], -1)  # (N, R, 3)
    kind = rng.choice(4, size=(count, w.records), p=np.array(w.shares) / sum(w.shares))
    if all_known:
        kind[:] = 2
    no_context = rng.random(count) < (0.0 if all_known else w.no_context)
    known = np.stack([(kind == 0) | (kind == 2), (kind == 1) | (kind == 2)], -1)
    known[no_context, :, 1] = False
    # Places: records and fillers in random order, records three tokens long.
    order = rng.permuted(np.tile(np.arange(w.records + w.fillers), (count, 1)), axis=1)
    lengths = np.where(order < w.records, 3, 1)
    starts = np.empty_like(order)
    starts[rows, order] = 1 + np.cumsum(lengths, 1) - lengths  # of record or filler i
    places = starts[:, : w.records, None] + np.arange(3)  # (N, R, 3)
    full = rng.integers(w.filler_kinds, size=(count, w.passage_tokens)) + 4
    full[:, 0] = BOS

    def written(records: np.ndarray) -> np.ndarray:
        made = full.copy()
        made[rows[..., None], places] = records
        return made

    masked = np.where(rng.random(records.shape) < w.key_kept, records, MASK)
    masked[..., 2] = MASK
    receiver = written(np.where(known[..., 1:], records, masked))
    receiver[no_context, 1:] = MASK
    return Passages(
        written(records),
        written(np.where(known.any(-1)[..., None], records, MASK)),
        written(np.where(known[..., :1], records, MASK)),
        receiver,
        records,
        known,
        no_context,
    )


def ask(records: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Questions with their answers, `Q e r A v`, about the records `picks` (N, Q): (N, Q, 5)."""
    asked = records[np.arange(len(records))[:, None], picks]
    mark = np.ones((*picks.shape, 1), int)
    return np.concatenate([QUESTION * mark, asked[..., :2], ANSWER * mark, asked[..., 2:]], -1)


def pick(allowed: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(N, count) records drawn from those `allowed` (N, R); any where none is."""
    weights = allowed + 1e-9
    bounds = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
    drawn = rng.random((len(allowed), count))
    return (drawn[..., None] > bounds[:, None]).sum(-1).clip(max=allowed.shape[1] - 1)


def renamed(world: World, seed: int) -> np.ndarray:
    """(V,): the sharer's number of each token: another tokenizer, of the same pieces."""
    return np.random.default_rng([seed, 9]).permutation(world.vocab_size)


def world_of(settings: Mapping) -> World:
    """The world of the configuration's section."""
    given = {name: value for name, value in settings.items() if name in World.__dataclass_fields__}
    return World(**given | {"shares": tuple(given["shares"])} if "shares" in given else given)
