"""Which tokens of the sharer's KV are sent.

A selector gives every token a score; of the tokens in scope those with the highest are sent, of
equal ones the earlier. A selector is one function, registered under its name, as the configuration
spells it. What a sender can compute is apart from oracles, which need the receiver's own KV: their
traffic (`Selector.charged`) counts as sent.

Shapes: B batch, T tokens, scores (B, T).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.c2c.source import Context, SourceKV
from ember.records.errors import EmberError, nearest

SCOPES = ("prompt", "instruction_only", "all_context")


class BadSelection(EmberError):
    """A selection that cannot be made; the message says how to fix it."""


@dataclass(frozen=True)
class Selector:
    """How tokens are ranked."""

    name: str
    score: Callable[[SourceKV, Context, Tensor, int], Tensor]  # of source, context, scope, seed
    oracle: bool  # needs the receiver's own KV
    run: bool  # chooses neighbours, whose places are a start and a number

    def charged(self, context: Context) -> int:
        """Bytes a token that the receiver must send first: its own KV in 16 bits, of an oracle."""
        if not self.oracle:
            return 0
        return sum(2 * x.shape[-2] * x.shape[-1] for kv in _own(self.name, context) for x in kv)


SELECTORS: dict[str, Selector] = {}


def selector(name: str, *, oracle: bool = False, run: bool = False):
    """Registers a function as the scores of a selector."""

    def register(score: Callable) -> Callable:
        SELECTORS[name] = Selector(name, score, oracle, run)
        return score

    return register


@dataclass(frozen=True)
class Selection:
    """What of the tokens in scope is sent: int(proportion · their number), `min_tokens` at least.

    Scopes: `prompt` and `all_context` take every token that the source has (a prompt of one turn is
    all of its context), `instruction_only` those of the instruction; others are not sent.
    """

    mode: str = "front"
    proportion: float = 1.0
    scope: str = "prompt"
    min_tokens: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.mode not in SELECTORS:
            raise BadSelection(
                f"unknown token_select_mode {self.mode!r}.{nearest(self.mode, SELECTORS)} "
                f"Known: {', '.join(SELECTORS)}"
            )
        if self.scope not in SCOPES:
            raise BadSelection(
                f"unknown token_select_scope {self.scope!r}. Set it to {', '.join(SCOPES)}"
            )

    @property
    def all(self) -> bool:
        """Whether nothing in scope is left out."""
        return self.proportion >= 1

    def inside(self, source: SourceKV, context: Context) -> Tensor:
        """(B, T) bool: tokens in scope."""
        narrow = self.scope == "instruction_only"
        return source.tokens & context.instruction if narrow else source.tokens

    def scores(self, source: SourceKV, context: Context) -> Tensor | None:
        """(B, T) float: the higher, the sooner sent; None where all are."""
        if self.all:
            return None
        chosen = SELECTORS[self.mode].score
        return chosen(source, context, self.inside(source, context), self.seed).float()

    def choose(self, source: SourceKV, context: Context, scores: Tensor | None) -> Tensor:
        """(B, T) bool: tokens that are sent."""
        inside = self.inside(source, context)
        if scores is None:
            return inside
        return top(scores, inside, self.counts(inside))

    def counts(self, inside: Tensor) -> Tensor:
        """(B,) tokens sent of those in scope."""
        available = inside.sum(1)
        wanted = (available * self.proportion + 1e-9).long()  # 0.29 · 100 is 28.999…
        return wanted.clamp(min=self.min_tokens).minimum(available)


def top(scores: Tensor, inside: Tensor, counts: Tensor) -> Tensor:
    """(B, T) bool: of the tokens inside, the `counts` (B,) with the highest scores.

    Raises BadSelection for scores that are NaN.
    """
    if bool(scores.isnan().any()):
        raise BadSelection("scores of tokens are NaN: look for NaN in the sharer's cache")
    masked = scores.masked_fill(~inside, -torch.inf)
    order = masked.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return inside & (rank < counts[:, None])


def overlap(sets: Sequence[Tensor]) -> Tensor:
    """(n, n): mean share of the tokens chosen by one that another chose too, over items.

    Each set is (B, T) bool. Items of which nothing was chosen are left out.
    """
    flat = torch.stack([chosen.float() for chosen in sets])
    both = torch.einsum("abt,cbt->acb", flat, flat)
    size = flat.sum(2)[:, None]
    return torch.where(size > 0, both / size.clamp(min=1), torch.nan).nanmean(2)


@selector("front", run=True)
def _front(source, context, inside, seed):
    return -_places(inside)


@selector("back", run=True)
def _back(source, context, inside, seed):
    return _places(inside)


@selector("middle", run=True)
def _middle(source, context, inside, seed):
    middle = (inside.sum(1, keepdim=True) - 1) / 2
    return -(_places(inside) - middle).abs()


@selector("random")
def _random(source, context, inside, seed):
    """A draw for each text, the same whatever shares its batch, on any device."""
    return _hash(context.texts[:, None] + _places(inside).long(), seed)


@selector("vnorm_topk")
def _vnorm(source, context, inside, seed):
    return _norms(source.values)


@selector("knorm_topk")
def _knorm(source, context, inside, seed):
    return _norms(source.keys)


@selector("proj_vnorm_topk")
def _proj_vnorm(source, context, inside, seed):
    """Of what the fuser makes of the source alone: a sender that holds the fuser can compute it."""
    return _norms(projected(source, context, None))


@selector("proj_vnorm_own_topk", oracle=True)
def _proj_vnorm_own(source, context, inside, seed):
    """Of what the fuser makes of the source and the receiver's own KV."""
    return _norms(projected(source, context, _own("proj_vnorm_own_topk", context)))


def projected(source: SourceKV, context: Context, own) -> list[Tensor]:
    """What open gates add to values (B, T, Ht, Dt); without `own`, of a receiver of zeros."""
    fuser = context.fuser
    if fuser is None:
        raise BadSelection("proj_vnorm_topk needs the fuser at the sender: load it there")
    found = []
    for target, number in enumerate(fuser.sources):
        if not fuser.open_gates()[target][1]:
            continue
        theirs = source.of(number)[1]
        zeros = theirs.new_zeros(*theirs.shape[:2], *fuser[target].value.heads)
        found.append(fuser[target].value(theirs, zeros if own is None else own[target][1]))
    if not found:
        raise BadSelection("no gate of values is open: take another token_select_mode")
    return found


def _own(name: str, context: Context):
    if context.own is None:
        raise BadSelection(
            f"{name} needs the receiver's own KV, and the receiver is not loaded: "
            "take a selector that the sender can compute, or the simultaneous mode"
        )
    return context.own()


def _norms(parts: Sequence[Tensor]) -> Tensor:
    """(B, T): mean over layers and heads of the norm."""
    return torch.stack([x.float().norm(dim=-1).mean(-1) for x in parts]).mean(0)


def _places(inside: Tensor) -> Tensor:
    """Number of each token in scope, from 0."""
    return inside.float().cumsum(1) - 1


def _hash(x: Tensor, seed: int) -> Tensor:
    """Integers below 2**24 that look random, of integers (Murmur's last step)."""
    mask = 0xFFFFFFFF
    x = (x + (seed + 1) * 0x9E3779B9) & mask
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = ((x ^ (x >> 15)) * (factor & 0x7FFFFFFF)) & mask
    return (x ^ (x >> 16)) & 0xFFFFFF
