"""Tokens after which the model knew least what comes: the entropy of its prediction there."""

from typing import ClassVar

from ember.streaming.selector import Selector, by_number, numbers


class Uncertainty(Selector):
    name: ClassVar[str] = "uncertainty"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def scores(self, moment, start, stop):
        return by_number(moment.entropy, numbers(moment, start, stop))
