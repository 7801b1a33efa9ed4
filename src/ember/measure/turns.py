"""Subjects of a comparison take turns, so that drift of the machine biases none of them.

for number, order in rounds(engines, range(-warmup, repeats)):
    for engine in order:
        ...
"""

import random
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def turn(subjects: Collection[T], number: int) -> list[T]:
    """All subjects, another one first in every run: of a pair, each in every other run."""
    here = list(subjects)
    first = number % len(here) if here else 0
    return here[first:] + here[:first]


def rounds(
    subjects: Collection[T], numbers: Iterable[int], rng: random.Random | None = None
) -> Iterator[tuple[int, list[T]]]:
    """Each number with all subjects in the order of that round; those below 0 are warm-up.

    By default every round begins with another subject, so that of two each goes first in every
    other round; subjects that drop out of the collection meanwhile are left out. With `rng` the
    order is drawn anew in each round: for many subjects, where neighbours must vary too.
    """
    drawn = list(subjects)
    for number in numbers:
        if rng is not None:
            rng.shuffle(drawn)
            yield number, list(drawn)
        else:
            yield number, turn(subjects, number)
