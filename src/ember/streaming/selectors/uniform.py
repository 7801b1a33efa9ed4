"""An even sample of all that was ever old: each token draws a number once, the highest stay."""

from ember.streaming.selector import Selector, numbers

MULTIPLIER, MODULUS = 2654435761, 1 << 32  # Knuth's multiplicative hash


class Uniform(Selector):
    name = "uniform"

    def scores(self, moment, start, stop):
        ids = numbers(moment, start, stop)
        return (ids * MULTIPLIER % MODULUS * MULTIPLIER % MODULUS).double()
