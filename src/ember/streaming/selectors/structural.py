"""The newest ends of lines and sentences, and quotes."""

from ember.streaming.selector import Selector, by_number, numbers


class Structural(Selector):
    name = "structural"
    needs = frozenset({"structure"})

    def scores(self, moment, start, stop):
        ids = numbers(moment, start, stop)
        ends = moment.structural[moment.tokens]  # (B, T)
        # Any of them before any other token, and of two the newer.
        return by_number(ends, ids) * moment.tokens.shape[1] + ids.double()
