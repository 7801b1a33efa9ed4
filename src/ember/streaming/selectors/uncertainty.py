"""Tokens after which the model knew least what comes: the entropy of its prediction there."""

from ember.streaming.selector import Selector, by_number, numbers


class Uncertainty(Selector):
    name = "uncertainty"
    needs = frozenset({"entropy"})

    def scores(self, moment, start, stop):
        return by_number(moment.entropy, numbers(moment, start, stop))
