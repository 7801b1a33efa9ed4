"""Rows whose tokens torch samples: what the eager and the compiled backend have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.backends.base import POLL_EVERY, Candidate
from ember.backends.forward import Forward
from ember.backends.sampling import SamplingParams, sample
from ember.cache.slotted import SlottedCache


class TorchRows:
    """Tokens and logits of the rows of a `SlottedCache`, and how each samples."""

    lag = 0

    def __init__(self, cache: SlottedCache, logits: Tensor, forward: Forward):
        """`logits` (slots, V): where a step leaves them."""
        self.cache, self.forward = cache, forward
        self._device = cache.rows.device
        self.interval = POLL_EVERY[self._device.type]
        self._tokens = torch.zeros(cache.slots, dtype=torch.long, device=self._device)
        self._logits = logits
        self._how: list[tuple[SamplingParams, torch.Generator | None]] = []
        self._taken: list[tuple] = []  # what was sampled since the last look
        self._set_rows(0)

    def join(self, candidates: Sequence[Candidate], logits: Tensor | None) -> None:
        self._set_rows(len(self._how) + len(candidates))
        if logits is None:
            self.tokens[-len(candidates) :] = candidates[0].last
        else:
            self.logits[-len(candidates) :] = logits
        for one in candidates:
            free = not one.params.greedy
            generator = torch.Generator(self._device).manual_seed(one.seed) if free else None
            self._how.append((one.params, generator))
        self._group()

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self._tokens[target] = self._tokens[source]
            self._logits[target] = self._logits[source]
            self._how[target] = self._how[source]
        del self._how[rows:]
        if not rows:
            self._taken.clear()
        self._set_rows(rows)
        self._group()

    def sample(self) -> None:
        if len(self._kinds) == 1:
            [(params, _, generators)] = self._kinds
            tokens, logprobs, raw, alternatives = sample(self.logits, params, generators)
            self.tokens.copy_(tokens)
            self._taken.append((tokens, logprobs, raw, [alternatives] if alternatives else None))
            return
        logprobs, raw = torch.empty(2, len(self.logits), device=self._device)
        alternatives = []
        for params, places, generators in self._kinds:
            at = torch.tensor(places, device=self._device)
            found = sample(self.logits.index_select(0, at), params, generators)
            self.tokens[at], logprobs[at], raw[at] = found[:3]
            alternatives.append(found.alternatives)
        wanted = any(found is not None for found in alternatives)
        tokens = self.tokens.clone()
        self._taken.append((tokens, logprobs, raw, alternatives if wanted else None))

    def receive(self) -> "HostReceived":
        taken, self._taken = self._taken, []
        return HostReceived(taken, [places for _, places, _ in self._kinds])

    def _set_rows(self, rows: int) -> None:
        self.tokens, self.logits = self._tokens[:rows], self._logits[:rows]

    def _group(self) -> None:
        """Rows of equal parameters are sampled together."""
        kinds: dict[SamplingParams, list[int]] = {}
        for place, (params, _) in enumerate(self._how):
            kinds.setdefault(params, []).append(place)
        self._kinds = [
            (params, places, [] if params.greedy else [self._how[i][1] for i in places])
            for params, places in kinds.items()
        ]


@dataclass
class HostReceived:
    """Steps of sampled tokens, each (tokens, logprobs, raw, alternatives by kind of row)."""

    taken: list[tuple]
    places: list[list[int]]

    def lists(self):
        if len(self.taken) == 1:
            tokens, logprobs, raw = (x[:, None].tolist() for x in self.taken[0][:3])
        else:
            tokens, logprobs, raw = (
                torch.stack([step[i] for step in self.taken], 1).tolist() for i in range(3)
            )
        if self.taken[0][3] is None:
            return tokens, logprobs, raw, None
        found: list[list] = [[] for _ in tokens]
        for step in self.taken:
            for places, kind in zip(self.places, step[3], strict=True):
                if kind is not None:
                    ids, values = (x.tolist() for x in kind)
                    for row, place in enumerate(places):
                        found[place].append(tuple(zip(ids[row], values[row], strict=True)))
        return tokens, logprobs, raw, found
