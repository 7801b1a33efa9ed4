"""What two pipeline stages do, and in which order: splits, micro-batches, units of work.

Contract. Pure data, known to both stages before they start, so that no message needs a header. A
unit is the work of one stage between two messages: a chunk of a micro-batch's prompts, or one
decoding step of it. Both stages run the same units in the same order.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ember.records.errors import EmberError


class BadSplit(EmberError):
    """A split of the layers, or of the batch, that two stages cannot run."""


@dataclass(frozen=True)
class Unit:
    """Work of one micro-batch: tokens `start` … `stop` of its rows.

    `step` is 0 in the prefill, in which `chunk` counts its pieces, and counts decoding steps from
    1. `samples`: the last stage chooses a token after it. `replies`: the last stage sends a message
    back that the first one waits for.
    """

    micro_batch: int
    step: int
    chunk: int
    start: int
    stop: int
    samples: bool
    replies: bool

    @property
    def phase(self) -> str:
        return "decode" if self.step else "prefill"


def check_split(split: int, layers: int) -> None:
    """Raises `BadSplit` unless both stages get a layer."""
    if not (isinstance(split, int) and 1 <= split <= layers - 1):
        raise BadSplit(
            f"a first stage of {split} layers leaves nothing for one of two stages of a model of "
            f"{layers}.\nChoose 1 to {layers - 1}"
            + (" (a model of one layer has no two stages)." if layers < 2 else ".")
        )


def splits_of(layers: int, fractions: Sequence[float]) -> list[int]:
    """Layers of the first stage for fractions of the depth; each once, in order.

    9, 12, 18, 24 and 27 of 36 layers are 1/4, 1/3, 1/2, 2/3 and 3/4 (P1-1.2). In shallow models
    neighbours fall together. Raises `BadSplit` for a model that cannot be split.
    """
    check_split(1, layers)
    nearest = (min(max(round(fraction * layers), 1), layers - 1) for fraction in fractions)
    return sorted(set(nearest))


def make_micro_batches(lengths: Sequence[int], micro_batches: int) -> list[list[int]]:
    """Numbers of the prompts in each of `micro_batches` micro-batches of near equal size.

    Prompts of a micro-batch have the same length; where lengths differ there are about as many as
    asked for, one for each length at least. Raises `BadSplit` where there are fewer prompts than
    micro-batches.
    """
    if not 1 <= micro_batches <= len(lengths):
        raise BadSplit(
            f"{len(lengths)} sequences cannot make {micro_batches} micro-batches.\n"
            f"Choose 1 to {len(lengths)} micro-batches, or more sequences."
        )
    groups: list[list[int]] = []
    for length in sorted(set(lengths)):
        same = [number for number, other in enumerate(lengths) if other == length]
        parts = max(1, round(len(same) * micro_batches / len(lengths)))
        groups += [same[at:to] for at, to in _cuts(len(same), parts)]
    return groups


def plan_units(
    lengths: Sequence[int], new_tokens: int, *, chunks: int = 1, overlap: bool = True
) -> list[Unit]:
    """Units of micro-batches whose prompts have these lengths, in the order both stages run them.

    A prompt is run in `chunks` pieces (or as many as it has tokens). Without overlap every unit
    has a reply, and the first stage waits for it before it goes on.
    """
    if new_tokens < 1 or chunks < 1:
        raise BadSplit(f"new_tokens is {new_tokens} and chunks {chunks}.\nBoth are 1 or more.")
    units = []
    for micro_batch, length in enumerate(lengths):
        for chunk, (start, stop) in enumerate(_cuts(length, min(chunks, length))):
            ends = stop == length
            replies = not overlap or (ends and new_tokens > 1)
            units.append(Unit(micro_batch, 0, chunk, start, stop, ends, replies))
    for step in range(1, new_tokens):
        for micro_batch, length in enumerate(lengths):
            at = length + step - 1
            replies = not overlap or step < new_tokens - 1
            units.append(Unit(micro_batch, step, 0, at, at + 1, True, replies))
    return units


def _cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """`parts` neighbouring ranges of near equal size that cover 0 … total."""
    edges = [total * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))
