"""What the policies talk about: an update of the weights, a prompt to prefill, a plan for it.

Cells are (layer, token) positions of a prompt's KV cache. A plan recomputes the rectangle
[start_layer, stop_layer) x [start_token, tokens) and reuses every other cell. Plain data, no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ember.records.errors import EmberError


class BadPolicy(EmberError):
    """A policy was asked for something it cannot be or do; the message names the remedy."""


@dataclass(frozen=True)
class Update:
    """New weights, told to a policy before the first round that runs with them.

    changed_layers: layers in which anything moved. changed_kv: those whose own key or value
    projection moved (default: all of changed_layers); a layer that moved only its query leaves its
    own KV exact. version: content hash of the weights or adapter, part of every cache key.
    """

    round: int
    changed_layers: frozenset[int]
    version: str
    changed_kv: frozenset[int] | None = None

    def __post_init__(self):
        if self.changed_kv is not None and not self.changed_kv <= self.changed_layers:
            extra = sorted(self.changed_kv - self.changed_layers)
            raise BadPolicy(
                f"update {self.version}: changed_kv names layers {extra} that changed_layers does "
                "not; list every moved layer in changed_layers"
            )

    @property
    def kv_layers(self) -> frozenset[int]:
        """Layers whose own key or value projection moved."""
        return self.changed_layers if self.changed_kv is None else self.changed_kv

    def first_changed(self, num_layers: int) -> int:
        """First layer that moved; num_layers if none. Hidden states entering it are exact."""
        return min(self.changed_layers, default=num_layers)

    def first_stale(self, num_layers: int) -> int:
        """First layer whose KV is no longer exact; num_layers if every layer's is."""
        first = self.first_changed(num_layers)
        return first if first in self.kv_layers else min(first + 1, num_layers)


@dataclass(frozen=True)
class Request:
    """One prefill: `prompt` is the key of the prompt's content, shared_prefix leading tokens are
    common to all prompts of the round."""

    round: int
    prompt: str
    tokens: int
    shared_prefix: int = 0

    def __post_init__(self):
        if self.tokens < 1 or not 0 <= self.shared_prefix < self.tokens:
            raise BadPolicy(
                f"prompt {self.prompt}: {self.tokens} tokens with a shared prefix of "
                f"{self.shared_prefix}; the prefix must be shorter than the prompt"
            )


@dataclass(frozen=True)
class Plan:
    """Recompute [start_layer, stop_layer) x [start_token, tokens); reuse the rest.

    The hidden states entering start_layer are read from the store (from the embedding at layer 0).
    Where the rectangle stops below the top, the last token alone runs on to give the logits; with
    start_layer = num_layers nothing runs but the head. prefix_tokens leading tokens come from the
    prefix that this round has already computed for another prompt. correct: stale cells outside the
    rectangle get the low-rank correction first. full_refresh: everything is recomputed.
    """

    start_layer: int
    stop_layer: int
    start_token: int
    prefix_tokens: int = 0
    correct: bool = False
    full_refresh: bool = False

    @classmethod
    def full(cls, num_layers: int) -> "Plan":
        """Recompute everything."""
        return cls(0, num_layers, 0, full_refresh=True)

    @classmethod
    def restart(cls, num_layers: int, layer: int) -> "Plan":
        """Recompute all tokens from `layer` upwards, from the stored hidden states entering it."""
        return cls.full(num_layers) if layer == 0 else cls(layer, num_layers, 0)

    @classmethod
    def last_tokens(cls, num_layers: int, tokens: int, count: int = 1, **kwargs) -> "Plan":
        """Recompute the last `count` of `tokens` tokens in all layers."""
        if count >= tokens:
            return cls.full(num_layers)
        return cls(0, num_layers, tokens - count, **kwargs)

    @property
    def renews(self) -> bool:
        """Whether nothing remains of the prompt's own old cache: all is computed this round."""
        behind_prefix = self.start_layer == 0 and self.start_token == self.prefix_tokens > 0
        return self.full_refresh or behind_prefix

    def fill(self, tokens: int, rank: int, frozen_layers: int, boundaries: Sequence[int]) -> "Fill":
        """The work that this plan is for a prompt of so many tokens, under a policy that keeps
        factors of `rank` (0: none) and the hidden states entering `boundaries`, and does not train
        the first `frozen_layers`. Raises BadPolicy for several boundaries, which nothing times."""
        if len(boundaries) > 1:
            raise BadPolicy(
                f"hidden states kept at layers {', '.join(map(str, boundaries))}: plans are timed "
                "with one boundary at most; drop one of the policies that are composed"
            )
        renews, last = self.renews, self.start_layer == 0 and self.start_token == tokens - 1 > 0
        return Fill(
            self.start_layer,
            self.stop_layer,
            self.start_token,
            self.prefix_tokens,
            correct=self.correct,
            corrected_from=frozen_layers if self.correct else 0,
            rank=rank if renews or self.correct else 0,
            boundary=boundaries[0] if boundaries and not last else 0,
        )

    def rectangles(self, num_layers: int, tokens: int) -> list[tuple[int, int, int, int]]:
        """What runs: (start token, stop token, start layer, stop layer), without overlap."""
        out = []
        if self.start_layer < self.stop_layer:
            out.append((self.start_token, tokens, self.start_layer, self.stop_layer))
        if self.stop_layer < num_layers:
            out.append((tokens - 1, tokens, self.stop_layer, num_layers))
        return out

    def check(self, num_layers: int, tokens: int) -> None:
        """Raise BadPolicy unless the plan fits a model and a prompt."""
        layers_fit = 0 <= self.start_layer <= self.stop_layer <= num_layers
        tokens_fit = 0 <= self.prefix_tokens <= self.start_token < tokens
        if not (layers_fit and tokens_fit):
            raise BadPolicy(
                f"{self} does not fit {num_layers} layers and {tokens} tokens; "
                "build plans for the model and the prompt they are carried out on"
            )


@dataclass(frozen=True)
class Fill:
    """The work of bringing one prompt's KV up to date: what is timed, and what has a price.

    A plan's rectangle, and what is done along the way: the correction from layer `corrected_from`
    on by factors of `rank`, or keeping such factors (0: none); keeping the hidden states that enter
    the layer `boundary` (0: none).
    """

    start_layer: int
    stop_layer: int
    start_token: int
    prefix: int
    correct: bool
    corrected_from: int
    rank: int
    boundary: int

    def plan(self, num_layers: int) -> Plan:
        """The plan that asks a model of so many layers for this work."""
        place = (self.start_layer, self.stop_layer, self.start_token, self.prefix)
        return Plan(*place, self.correct, full_refresh=place == (0, num_layers, 0, 0))
