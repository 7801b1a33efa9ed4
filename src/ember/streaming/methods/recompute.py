"""Window recomputation: what is kept is read anew, as a text of its own. The oracle of quality."""

from ember.streaming.method import Method


class Recompute(Method):
    """Sinks and window, whose keys and values know nothing of what was dropped: at each prune they
    are computed from the kept tokens alone."""

    name = "recompute"
    improves = "none: a reference"

    def apply(self, moment, places):
        cache = moment.cache
        cache.drop(places)
        kept = cache.ids[0, :, : cache.slots].clone()  # (B, n), the same in all layers
        seen, copied = cache.seen, cache.copied_bytes
        cache.reset()
        wants, cache.wants_mass = cache.wants_mass, False
        moment.decoder(moment.tokens.gather(1, kept), cache=cache, last=1)
        moment.calls += 1
        cache.wants_mass, cache.copied_bytes = wants, copied
        cache.base = seen - cache.slots
        cache.ids[:, :, : cache.slots] = kept
