"""Tokens with the most attention so far, a query: the stronger reference (H2O's score)."""

from ember.streaming.selector import Selector, numbers


class Attention(Selector):
    name = "attention"
    needs = frozenset({"mass"})

    def scores(self, moment, start, stop):
        age = moment.step - numbers(moment, start, stop)  # queries that saw the token
        return moment.cache.mass[:, :, :, start:stop].sum(2) / age
