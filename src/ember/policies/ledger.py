"""What a cached prompt is worth after some updates: which KV cells lag, and by how many updates.

A cell is (layer, token). Its value depends on the weights that projected it and on the hidden state
it was projected from, which in turn depends on every layer below and every earlier token. The
ledger carries, for each cell, the update both were last taken from, so it knows which cells a fresh
prefill would change without running one. Exact where it says 0: such a cell equals a fresh prefill.
Prompts are stored as bands of tokens with equal history, so the cost does not grow with length.
Plain integers, no torch.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache

from ember.policies.plan import Plan, Update


@dataclass(frozen=True)
class Band:
    """Tokens [start, stop) with equal history; per layer the update each ingredient is from."""

    start: int
    stop: int
    weights: tuple[int, ...]  # (L,) update whose key and value projections made the cell
    inputs: tuple[int, ...]  # (L,) update the cell's input hidden state is worth
    hidden: tuple[int, ...]  # (L+1,) update the stored hidden state entering a layer is worth


Bands = tuple[Band, ...]


@dataclass(frozen=True)
class Tally:
    """What one prefill did, in cells (layer x token)."""

    recomputed: tuple[int, ...]  # (L,) by layer
    token_steps: tuple[tuple[int, int], ...]  # (token, change of recomputed layers from there on)
    corrected: int
    stale: int
    staleness: int  # summed over cells, in updates


class Ledger:
    """History of updates, and the effect of plans on stored prompts.

    `apply` is pure and caches by its arguments, since most prompts of a round have the same
    history.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.now = 0  # index of the newest update; 0 is the initial weights
        self._first_changed: list[int] = []  # per update: first layer that changed
        self._kv_changed: list[list[int]] = [[] for _ in range(num_layers)]  # per layer: updates
        self.apply = lru_cache(maxsize=1024)(self._compute)

    def update(self, update: Update) -> None:
        """Note an update of the weights."""
        self.now += 1
        self._first_changed.append(update.first_changed(self.num_layers))
        for layer in update.kv_layers:
            self._kv_changed[layer].append(self.now)
        self.apply.cache_clear()

    def fresh_input(self, layer: int, version: int) -> int:
        """The newest update at which a hidden state entering `layer` still is what it was."""
        for index in range(version, self.now):
            if self._first_changed[index] < layer:
                return version
        return self.now

    def staleness(self, layer: int, weights: int, inputs: int) -> int:
        """Updates that a cell of `layer` has missed; 0 means it equals a fresh prefill's."""
        missed = set(self._since(layer, weights))
        missed.update(
            index + 1 for index in range(inputs, self.now) if self._first_changed[index] < layer
        )
        return len(missed)

    def _since(self, layer: int, version: int) -> list[int]:
        changed = self._kv_changed[layer]
        return changed[bisect_right(changed, version) :]

    def _compute(
        self, bands: Bands | None, plan: Plan, tokens: int, donor: Bands | None = None
    ) -> tuple[Bands, Tally]:
        """Carries out `plan` on a prompt of `tokens` tokens; `donor` holds the round's prefix."""
        layers = self.num_layers
        if bands is None:
            blank = tuple([0] * layers)
            bands = (Band(0, tokens, blank, blank, (*blank, 0)),)
        if plan.prefix_tokens and donor is not None:
            bands = _splice(donor, bands, plan.prefix_tokens)
        bands = _cut(bands, sorted({plan.start_token, tokens - 1}))
        corrected = 0
        if plan.correct:
            bands, corrected = self._correct(bands, plan)
        bands = self._run(bands, plan, tokens)

        recomputed = [0] * layers
        steps: dict[int, int] = {}
        for start, stop, first, last in plan.rectangles(layers, tokens):
            for layer in range(first, last):
                recomputed[layer] += stop - start
            steps[start] = steps.get(start, 0) + last - first
            steps[stop] = steps.get(stop, 0) - (last - first)
        stale = staleness = 0
        for band in bands:
            for layer in range(layers):
                lag = self.staleness(layer, band.weights[layer], band.inputs[layer])
                stale += (lag > 0) * (band.stop - band.start)
                staleness += lag * (band.stop - band.start)
        bands = _merge(bands)
        return bands, Tally(
            tuple(recomputed), tuple(sorted(steps.items())), corrected, stale, staleness
        )

    def _correct(self, bands: Bands, plan: Plan) -> tuple[Bands, int]:
        """The low-rank correction: projections become current, inputs stay what they were."""
        corrected, out = 0, []
        for band in bands:
            weights = list(band.weights)
            for layer in range(self.num_layers):
                if self._since(layer, weights[layer]):
                    weights[layer] = self.now
                    rerun = band.start >= plan.start_token and (
                        plan.start_layer <= layer < plan.stop_layer
                    )
                    corrected += 0 if rerun else band.stop - band.start
            out.append(replace(band, weights=tuple(weights)))
        return tuple(out), corrected

    def _run(self, bands: Bands, plan: Plan, tokens: int) -> Bands:
        """Recompute a rectangle: a cell is worth what its input and its past are worth."""
        layers = self.num_layers
        weights = [list(band.weights) for band in bands]
        inputs = [list(band.inputs) for band in bands]
        hidden = [list(band.hidden) for band in bands]
        for layer in range(plan.start_layer, layers):
            past = self.now
            for i, band in enumerate(bands):
                last = band.stop == tokens
                if band.start >= plan.start_token and (layer < plan.stop_layer or last):
                    entering = self.now if layer == 0 else hidden[i][layer]
                    inputs[i][layer] = self.fresh_input(layer, entering)
                    weights[i][layer] = self.now
                    past = min(past, self._worth(layer, weights[i][layer], inputs[i][layer]))
                    hidden[i][layer + 1] = min(past, inputs[i][layer])
                else:
                    past = min(past, self._worth(layer, weights[i][layer], inputs[i][layer]))
        return tuple(
            Band(band.start, band.stop, tuple(w), tuple(x), tuple(h))
            for band, w, x, h in zip(bands, weights, inputs, hidden, strict=True)
        )

    def _worth(self, layer: int, weights: int, inputs: int) -> int:
        """The newest update at which the cell equals a fresh prefill's."""
        projected = self.now if not self._since(layer, weights) else weights
        return min(projected, self.fresh_input(layer, inputs))


def _cut(bands: Bands, at: list[int]) -> Bands:
    out: list[Band] = []
    for band in bands:
        start = band.start
        for token in at:
            if start < token < band.stop:
                out.append(replace(band, start=start, stop=token))
                start = token
        out.append(replace(band, start=start))
    return tuple(out)


def _splice(donor: Bands, bands: Bands, tokens: int) -> Bands:
    """The donor's first `tokens` tokens, then the prompt's own."""
    head = [band for band in _cut(donor, [tokens]) if band.stop <= tokens]
    tail = [band for band in _cut(bands, [tokens]) if band.start >= tokens]
    return (*head, *tail)


def _merge(bands: Bands) -> Bands:
    out: list[Band] = []
    for band in bands:
        if out and replace(out[-1], start=band.start, stop=band.stop) == band:
            band = replace(band, start=out.pop().start)
        out.append(band)
    return tuple(out)
