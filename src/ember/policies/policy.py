"""What every cache policy is (P1-5), and the registry of those that a configuration can name.

One interface for all: `on_update` tells a policy of each update, `plan` asks it what to recompute
of one prompt, `record` tells it that the plan was carried out, `stats` counts. The simulator and
the engine drive the same objects. A policy is defined by `choose` alone; history, first visits and
statistics are the base class's. No torch.

To add one, write a dataclass in `ember.policies.kinds`: with a `name` it is in the registry, and
its fields are the parameters that the configuration may set.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from ember.policies.ledger import Bands, Ledger, Tally
from ember.policies.plan import BadPolicy, Plan, Request, Update

log = logging.getLogger(__name__)

POLICIES: dict[str, type["CachePolicy"]] = {}
"""Policies by name."""


@dataclass
class RoundStats:
    """Counts of one round. Cells are (layer, token) positions, summed over prompts."""

    round: int
    num_layers: int
    version: str
    prompts: int = 0
    recompute_cells: int = 0
    reuse_cells: int = 0
    corrected_cells: int = 0  # part of the reused cells
    full_refreshes: int = 0  # prompts recomputed as a whole
    stale_cells: int = 0  # cells in use that differ from a fresh prefill's
    staleness: int = 0  # updates missed, summed over all cells
    recompute_by_layer: list[int] = field(default_factory=list)
    token_steps: Counter = field(default_factory=Counter)
    plans: Counter = field(default_factory=Counter)  # Plan -> prompts
    ages: Counter = field(
        default_factory=Counter
    )  # updates since a reused entry was new -> prompts

    @property
    def hits(self) -> int:
        """Prompts that reused something."""
        return self.prompts - self.full_refreshes

    @property
    def misses(self) -> int:
        """Prompts that reused nothing."""
        return self.full_refreshes

    @property
    def recompute_ratio(self) -> float:
        """Recomputed share of all cells."""
        return self.recompute_cells / (self.recompute_cells + self.reuse_cells)

    @property
    def mean_staleness(self) -> float:
        """Updates missed by the average cell in use: the error proxy, 0 where reuse is exact."""
        return self.staleness / (self.recompute_cells + self.reuse_cells)

    def recompute_by_token(self) -> list[tuple[int, int]]:
        """(first token, recomputed cells of each token from there on), summed over prompts."""
        out, level = [], 0
        for token in sorted(self.token_steps):
            if self.token_steps[token]:
                level += self.token_steps[token]
                out.append((token, level))
        return out

    def add(self, plan: Plan, tokens: int, tally: Tally, age: int | None, prompts: int = 1) -> None:
        """Count `prompts` prompts of equal history; `age` of what they reuse of their own, in
        updates, None if they reuse nothing of their own."""
        recomputed = sum(tally.recomputed)
        self.prompts += prompts
        self.recompute_cells += prompts * recomputed
        self.reuse_cells += prompts * (self.num_layers * tokens - recomputed)
        self.corrected_cells += prompts * tally.corrected
        self.full_refreshes += prompts * plan.full_refresh
        self.stale_cells += prompts * tally.stale
        self.staleness += prompts * tally.staleness
        before = self.recompute_by_layer or [0] * self.num_layers
        self.recompute_by_layer = [
            a + prompts * b for a, b in zip(before, tally.recomputed, strict=True)
        ]
        for token, step in tally.token_steps:
            self.token_steps[token] += prompts * step
        self.plans[plan] += prompts
        if age is not None:
            self.ages[age] += prompts


@dataclass(frozen=True)
class Visit:
    """The last prefill of a prompt."""

    tokens: int
    round: int
    update: int  # number of updates it had seen
    full_round: int  # round that last renewed all of it
    renewed: int  # number of updates seen then


class History:
    """What happened so far: updates, last visits, and who computed this round's shared prefix."""

    def __init__(self):
        self.updates: list[Update] = []
        self.visits: dict[str, Visit] = {}
        self.prefix_owner: tuple[int, int, int, str] | None = None

    def since(self, prompt: str) -> list[Update]:
        """Updates that came after the prompt's last prefill."""
        return self.updates[self.visits[prompt].update :]

    def age(self, prompt: str) -> int:
        """Updates since all of the prompt's entry was last computed."""
        return len(self.updates) - self.visits[prompt].renewed

    def version(self, updates: int | None = None) -> str:
        """Of the weights, after so many updates (default: all)."""
        seen = self.updates[:updates]
        return seen[-1].version if seen else "base"

    def prefix_donor(self, request: Request) -> str | None:
        """Prompt whose prefill computed the request's shared prefix with the present weights."""
        wanted = (request.round, len(self.updates), request.shared_prefix)
        if not request.shared_prefix or self.prefix_owner is None:
            return None
        return self.prefix_owner[3] if self.prefix_owner[:3] == wanted else None


@dataclass(eq=False, repr=False)
class CachePolicy:
    """Base of all policies: dataclasses that have an `id` and a `label` and implement `choose`.

    name: registers the class; the fields after num_layers are its parameters in a configuration.
    composes: parameters that a configuration may add by composition: share_prefix, max_age.
    frozen_layers: first layers that the policy asks the trainer to leave alone.
    boundaries: layers whose entering hidden states must be kept with the cache.
    keeps_factors: low-rank activations and raw keys must be kept with the cache.
    """

    name: ClassVar[str]
    composes: ClassVar[tuple[str, ...]] = ()
    frozen_layers: ClassVar[int] = 0
    boundaries: ClassVar[tuple[int, ...]] = ()
    keeps_factors: ClassVar[bool] = False

    num_layers: int

    def __init_subclass__(cls):
        if "name" in vars(cls):
            if cls.name in POLICIES:
                raise ValueError(f"two policies are called {cls.name}")
            POLICIES[cls.name] = cls

    def __post_init__(self):
        if self.num_layers < 1:
            raise BadPolicy(f"policy {self.id}: a model has at least one layer")
        self.check()
        self.reset()

    def __repr__(self):
        return f"<{type(self).__name__} {self.id}, {self.num_layers} layers>"

    def check(self) -> None:
        """Raises BadPolicy for parameters that cannot be."""

    def reset(self) -> None:
        """Forget prompts, updates and statistics."""
        self.history = History()
        self.ledger = Ledger(self.num_layers)
        self.stats: list[RoundStats] = []
        self._bands: dict[str, Bands] = {}

    def choose(self, request: Request, history: History) -> Plan:
        """The policy itself: a plan for a prompt that has been prefilled before."""
        raise NotImplementedError

    def choose_first(self, request: Request, history: History) -> Plan:
        """A plan for a prompt that has never been prefilled."""
        return Plan.full(self.num_layers)

    def on_update(self, update: Update) -> None:
        """The weights have moved. Call before the first round that runs with them."""
        outside = [n for n in update.changed_layers if not 0 <= n < self.num_layers]
        if outside:
            raise BadPolicy(
                f"update {update.version} changes layers {sorted(outside)} of a model with "
                f"{self.num_layers}; number layers from 0"
            )
        self.history.updates.append(update)
        self.ledger.update(update)

    def plan(self, request: Request) -> Plan:
        """What to recompute of this prompt now. Changes nothing: `record` what is carried out.

        A prompt that this round has prefilled with the present weights is not prefilled again, by
        any policy: its last token alone runs.
        """
        visit = self.history.visits.get(request.prompt)
        if visit and visit.tokens != request.tokens:
            raise BadPolicy(
                f"prompt {request.prompt} had {visit.tokens} tokens and now has {request.tokens}; "
                "key prompts by their content"
            )
        if visit and (visit.round, visit.update) == (request.round, len(self.history.updates)):
            plan = Plan.last_tokens(self.num_layers, request.tokens)
        else:
            choose = self.choose if visit else self.choose_first
            plan = choose(request, self.history)
        plan.check(self.num_layers, request.tokens)
        return plan

    def record(self, request: Request, plan: Plan, prompts: int = 1) -> RoundStats:
        """Note that `plan` was carried out, for `prompts` prompts of equal history that the request
        stands for. Returns the statistics of the request's round."""
        history, now = self.history, len(self.history.updates)
        donor = history.prefix_donor(request) if plan.prefix_tokens else None
        bands, tally = self.ledger.apply(
            self._bands.get(request.prompt), plan, request.tokens, self._bands.get(donor)
        )
        self._bands[request.prompt] = bands
        before = history.visits.get(request.prompt)
        renewed, full_round, age = now, request.round, None
        if before and not plan.renews:
            renewed, full_round, age = before.renewed, before.full_round, now - before.renewed
            log.debug("%s: prompt %s, KV %d updates old", self.id, request.prompt, age)
        history.visits[request.prompt] = Visit(
            request.tokens, request.round, now, full_round, renewed
        )
        whole = plan.start_token == 0 and plan.stop_layer == self.num_layers
        computed = whole and not tally.stale  # a stale prefix is shared with nobody
        if request.shared_prefix and computed and history.prefix_donor(request) is None:
            history.prefix_owner = (request.round, now, request.shared_prefix, request.prompt)
        if not self.stats or self.stats[-1].round != request.round:
            stats = RoundStats(request.round, self.num_layers, history.version())
            self.stats.append(stats)
        self.stats[-1].add(plan, request.tokens, tally, age, prompts)
        return self.stats[-1]

    def forget(self, prompt: str) -> None:
        """The prompt's cache is gone (evicted)."""
        self.history.visits.pop(prompt, None)
        self._bands.pop(prompt, None)
        owner = self.history.prefix_owner
        if owner and owner[3] == prompt:
            self.history.prefix_owner = None

    def totals(self) -> dict:
        """Statistics over all recorded rounds: sums, recompute_ratio and mean_staleness in the mean
        over rounds."""
        rounds = self.stats
        if not rounds:
            raise BadPolicy(f"policy {self.id} has recorded nothing yet; run a round first")
        summed = (
            *("prompts", "hits", "misses", "recompute_cells", "reuse_cells", "corrected_cells"),
            "full_refreshes",
        )
        found = {name: sum(getattr(stats, name) for stats in rounds) for name in summed}
        for name in ("recompute_ratio", "mean_staleness"):
            found[name] = sum(getattr(stats, name) for stats in rounds) / len(rounds)
        return {"rounds": len(rounds)} | found


def count(name: str, key: str, value, low: int, high: int | None = None) -> int:
    """A parameter that must be a whole number of low … high. Raises BadPolicy."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{low}..{high}"
        raise BadPolicy(f"{name}: {key} is {value!r}; set it to {bounds}")
    return value
