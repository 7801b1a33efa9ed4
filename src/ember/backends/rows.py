"""Rows whose tokens torch samples: what the eager and the compiled backend have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.backends.base import LOOK_EVERY, Candidate
from ember.backends.forward import Forward
from ember.backends.sampling import SamplingParams, sample
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import SlottedCache


class TorchRows:
    """Tokens and logits of the rows of a `SlottedCache`, and who samples how."""

    lag = 0

    def __init__(
        self,
        cache: SlottedCache,
        logits: Tensor,
        forward: Forward,
        staging: ContiguousCache | None,
    ):
        """`logits` (slots, V): where a step leaves them."""
        device = cache.rows.device
        self.cache, self.forward, self.staging = cache, forward, staging
        self.interval = LOOK_EVERY[device.type]
        self._tokens = torch.zeros(cache.slots, dtype=torch.long, device=device)
        self._logits = logits
        self._rows = 0
        self._sampler = RowSampler(device)

    @property
    def tokens(self) -> Tensor:
        return self._tokens[: self._rows]

    @property
    def logits(self) -> Tensor:
        return self._logits[: self._rows]

    def join(self, candidates: Sequence[Candidate], logits: Tensor) -> None:
        first = self._rows
        self._rows += len(candidates)
        self._logits[first : self._rows] = logits
        self._sampler.join(candidates)

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self._tokens[target] = self._tokens[source]
            self._logits[target] = self._logits[source]
        self._rows = rows
        self._sampler.leave(moves, rows)

    def sample(self) -> None:
        self.tokens.copy_(self._sampler(self.logits))

    def receive(self) -> "HostReceived":
        return self._sampler.receive()


class RowSampler:
    """Samples for rows with parameters and generators of their own, on the host's command."""

    def __init__(self, device: torch.device):
        self._device = device
        self._rows: list[tuple[SamplingParams, torch.Generator | None]] = []
        self._kinds: list[tuple[SamplingParams, list[int], list]] = []
        self._taken: list[tuple] = []

    def join(self, candidates: Sequence[Candidate]) -> None:
        for one in candidates:
            greedy = one.params.greedy
            generator = None if greedy else torch.Generator(self._device).manual_seed(one.seed)
            self._rows.append((one.params, generator))
        self._group()

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self._rows[target] = self._rows[source]
        del self._rows[rows:]
        if not rows:
            self._taken.clear()  # nobody will ask
        self._group()

    def _group(self) -> None:
        """Rows of equal parameters are sampled together."""
        kinds: dict[SamplingParams, list[int]] = {}
        for place, (params, _) in enumerate(self._rows):
            kinds.setdefault(params, []).append(place)
        self._kinds = [
            (params, places, [] if params.greedy else [self._rows[i][1] for i in places])
            for params, places in kinds.items()
        ]

    def __call__(self, logits: Tensor) -> Tensor:
        """Next tokens (B,) for logits (B, V)."""
        if len(self._kinds) == 1:
            [(params, _, generators)] = self._kinds
            sampled = sample(logits, params, generators)
            tokens, logprobs, raw, alternatives = sampled
            self._taken.append((tokens, logprobs, raw, [alternatives] if alternatives else None))
            return tokens
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        logprobs, raw = torch.empty(2, len(logits), device=logits.device)
        alternatives = []
        for params, places, generators in self._kinds:
            at = torch.tensor(places, device=logits.device)
            found = sample(logits.index_select(0, at), params, generators)
            tokens[at], logprobs[at], raw[at] = found[:3]
            alternatives.append(found.alternatives)
        wanted = any(found is not None for found in alternatives)
        self._taken.append((tokens, logprobs, raw, alternatives if wanted else None))
        return tokens

    def receive(self) -> "HostReceived":
        taken, self._taken = self._taken, []
        return HostReceived(taken, [places for _, places, _ in self._kinds])


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
