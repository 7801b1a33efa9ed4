"""The cache policies (P1-5.2): what each recomputes of a prompt after the weights have moved.

Which cells may be reused is explicit: the first k layers (`UpdateLocality`, exact, or
`KeepRegion`), the last k layers, all but the last m tokens (`KeepRegion`), the round's shared
prefix (`PrefixOnly`), what the same weights computed (`Salted`), everything for a while
(`PeriodicRefresh`), everything up to an age or for ever (`Stale`), everything after a correction
(`UpdatableKV`). `compose` joins several. Within a round no policy prefills a prompt twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ember.policies.plan import BadPolicy, Plan, Request
from ember.policies.policy import CachePolicy, History, count


@dataclass(eq=False, repr=False)
class Naive(CachePolicy):
    """An update invalidates everything: every prefill is a full one. `freeze`: first layers that do
    not train, for the comparison with policies that freeze as many."""

    name = "naive"

    freeze: int = 0

    def check(self) -> None:
        self.frozen_layers = count(self.name, "freeze_layers", self.freeze, 0, self.num_layers)

    @property
    def id(self) -> str:
        return f"naive_freeze_{self.freeze}" if self.freeze else "naive"

    @property
    def label(self) -> str:
        frozen = f", {self.freeze}/{self.num_layers} layers frozen" if self.freeze else ""
        return f"Naive{frozen}"

    def choose(self, request: Request, history: History) -> Plan:
        return Plan.full(self.num_layers)


@dataclass(eq=False, repr=False)
class PrefixOnly(CachePolicy):
    """KV is valid within a round: the round's first prompt computes the shared prefix, the others
    take it from there. Exact."""

    name = id = "prefix_only"
    label = "Prefix only"

    def choose(self, request: Request, history: History) -> Plan:
        if history.prefix_donor(request) is None:
            return Plan.full(self.num_layers)
        prefix = request.shared_prefix
        return Plan(0, self.num_layers, prefix, prefix_tokens=prefix)

    choose_first = choose


@dataclass(eq=False, repr=False)
class Salted(PrefixOnly):
    """Entries are keyed by the version of the weights, as engines with a prefix cache do: a prompt
    that the same version has prefilled is a hit, in whatever round; a prefix is shared within a
    round; nothing is used under another version. Exact."""

    name = id = "salted"
    label = "Salted by version"

    def choose(self, request: Request, history: History) -> Plan:
        if history.version(history.visits[request.prompt].update) == history.version():
            return Plan.last_tokens(self.num_layers, request.tokens)
        return self.choose_first(request, history)


@dataclass(eq=False, repr=False)
class UpdateLocality(CachePolicy):
    """The first `freeze` layers do not train: their KV stays exact, and the prefill restarts at
    layer `freeze` from the hidden states kept there. Exact always: an update that reaches below
    the boundary after all costs a full prefill."""

    name = "update_locality"
    composes = ("share_prefix",)

    freeze: int

    def check(self) -> None:
        self.frozen_layers = count(self.name, "freeze_layers", self.freeze, 0, self.num_layers)
        self.boundaries = (self.freeze,) if self.freeze else ()

    @property
    def id(self) -> str:
        return f"locality_{self.freeze}"

    @property
    def label(self) -> str:
        return f"Update locality, {self.freeze}/{self.num_layers} layers frozen"

    def choose(self, request: Request, history: History) -> Plan:
        updates = history.since(request.prompt)
        if all(update.first_changed(self.num_layers) >= self.freeze for update in updates):
            return Plan.restart(self.num_layers, self.freeze)
        if all(update.first_stale(self.num_layers) == self.num_layers for update in updates):
            return Plan.last_tokens(self.num_layers, request.tokens)
        return Plan.full(self.num_layers)


@dataclass(eq=False, repr=False)
class PeriodicRefresh(CachePolicy):
    """Full refresh in round 1 and in every multiple of `every`; stale KV between, with the last
    token run through the present weights to give logits."""

    name = "periodic_refresh"
    composes = ("share_prefix", "max_age")

    every: int

    def check(self) -> None:
        count(self.name, "every", self.every, 1)

    @property
    def id(self) -> str:
        return f"refresh_{self.every}"

    @property
    def label(self) -> str:
        return f"Refresh every {self.every} rounds"

    def choose(self, request: Request, history: History) -> Plan:
        if _due(request, history, self.every):
            return Plan.full(self.num_layers)
        return Plan.last_tokens(self.num_layers, request.tokens)


@dataclass(eq=False, repr=False)
class Stale(CachePolicy):
    """KV stays whatever the updates, with the last token run through the present weights to give
    logits; a prompt whose entry is more than `max_age` updates old is refreshed (None: never)."""

    name = "stale"
    composes = ("share_prefix",)

    max_age: int | None = None

    def check(self) -> None:
        if self.max_age is not None:
            count(self.name, "max_age", self.max_age, 0)

    @property
    def id(self) -> str:
        return "stale" if self.max_age is None else f"age_{self.max_age}"

    @property
    def label(self) -> str:
        if self.max_age is None:
            return "Stale, never refreshed"
        return f"Stale up to {self.max_age} updates"

    def choose(self, request: Request, history: History) -> Plan:
        if self.max_age is not None and history.age(request.prompt) > self.max_age:
            return Plan.full(self.num_layers)
        return Plan.last_tokens(self.num_layers, request.tokens)


@dataclass(eq=False, repr=False)
class UpdatableKV(CachePolicy):
    """Stale KV corrected in place by the low-rank update of rank `rank` (P1-8): exact in the first
    changed layer, approximate above it. Full refresh in round 1 and every multiple of `every`."""

    name = "updatable_kv"
    composes = ("share_prefix", "max_age")
    keeps_factors = True

    rank: int
    every: int
    freeze: int = 0

    def check(self) -> None:
        count(self.name, "rank", self.rank, 1)
        count(self.name, "every", self.every, 1)
        self.frozen_layers = count(self.name, "freeze_layers", self.freeze, 0, self.num_layers)

    @property
    def id(self) -> str:
        return f"updatable_r{self.rank}_k{self.every}" + (
            f"_freeze_{self.freeze}" if self.freeze else ""
        )

    @property
    def label(self) -> str:
        return f"Updatable KV, rank {self.rank}, refresh every {self.every} rounds" + (
            f", {self.freeze}/{self.num_layers} layers frozen" if self.freeze else ""
        )

    def choose(self, request: Request, history: History) -> Plan:
        if _due(request, history, self.every):
            return Plan.full(self.num_layers)
        moved = any(update.kv_layers for update in history.since(request.prompt))
        return Plan.last_tokens(self.num_layers, request.tokens, correct=moved)


@dataclass(eq=False, repr=False)
class KeepRegion(CachePolicy):
    """Reuse a fixed region whatever has changed: the axis of P1-5.2, for studies of its error.

    Exactly one of: first_layers (the prefill restarts above them from stale hidden states),
    last_layers (only the layers below them are recomputed), last_tokens (only these are
    recomputed, in all layers).
    """

    name = "keep_region"
    composes = ("share_prefix",)

    first_layers: int | None = None
    last_layers: int | None = None
    last_tokens: int | None = None

    def check(self) -> None:
        axes = ("first_layers", "last_layers", "last_tokens")
        given = {axis: getattr(self, axis) for axis in axes if getattr(self, axis) is not None}
        if len(given) != 1:
            raise BadPolicy(
                "keep_region: set exactly one of first_layers, last_layers and last_tokens, "
                f"not {', '.join(given) or 'none'}"
            )
        ((self.axis, self.value),) = given.items()
        if self.axis == "last_tokens":
            count(self.name, self.axis, self.value, 1)
        else:
            count(self.name, self.axis, self.value, 0, self.num_layers)
        self.boundaries = (self.value,) if self.axis == "first_layers" and self.value else ()

    @property
    def id(self) -> str:
        return f"keep_{self.axis}_{self.value}"

    @property
    def label(self) -> str:
        return {
            "first_layers": f"First {self.value}/{self.num_layers} layers kept",
            "last_layers": f"Last {self.value}/{self.num_layers} layers kept",
            "last_tokens": f"All but the last {self.value} tokens kept",
        }[self.axis]

    def choose(self, request: Request, history: History) -> Plan:
        if self.axis == "first_layers" and self.value < self.num_layers:
            return Plan.restart(self.num_layers, self.value)
        if self.axis == "last_layers" and 0 < self.value < self.num_layers:
            return Plan(0, self.num_layers - self.value, 0)
        if self.axis == "last_layers" and self.value == 0:
            return Plan.full(self.num_layers)
        count = self.value if self.axis == "last_tokens" else 1
        return Plan.last_tokens(self.num_layers, request.tokens, count)


class Composed(CachePolicy):
    """Several policies at once: a cell is reused only where all of them reuse it.

    The recomputed rectangles are joined to the smallest one around them. A lone last token, which
    runs only to give logits, is dropped where another part gives them by itself. The round's
    shared prefix (`PrefixOnly`) is the one exception: it is exact for any policy, and so lets the
    recomputation begin after it.
    """

    def __init__(self, parts: Sequence[CachePolicy]):
        self.id = "_".join(part.id for part in parts)
        self.parts = tuple(part for part in parts if not isinstance(part, PrefixOnly))
        self.share_prefix = len(self.parts) < len(parts)
        labels = [part.label for part in self.parts] + ["Shared prefix"] * self.share_prefix
        self.label = " + ".join([labels[0], *(x[0].lower() + x[1:] for x in labels[1:])])
        self.frozen_layers = max(part.frozen_layers for part in parts)
        self.boundaries = tuple(sorted({layer for part in parts for layer in part.boundaries}))
        self.keeps_factors = any(part.keeps_factors for part in parts)
        self.rank = max(getattr(part, "rank", 0) for part in parts)
        super().__init__(parts[0].num_layers)

    def choose(self, request: Request, history: History) -> Plan:
        plans = [part.choose(request, history) for part in self.parts]
        return self._share(self._strictest(plans, request.tokens), request, history)

    def choose_first(self, request: Request, history: History) -> Plan:
        return self._share(Plan.full(self.num_layers), request, history)

    def _strictest(self, plans: list[Plan], tokens: int) -> Plan:
        if any(plan.full_refresh for plan in plans):
            return Plan.full(self.num_layers)
        wide = [plan for plan in plans if plan.start_token < tokens - 1 and not plan.correct]
        wide = wide or plans
        start = min(plan.start_layer for plan in wide)
        stop = max(plan.stop_layer for plan in wide)
        token = min(plan.start_token for plan in wide)
        if (start, stop, token) == (0, self.num_layers, 0):
            return Plan.full(self.num_layers)
        return Plan(start, stop, token, correct=any(plan.correct for plan in wide))

    def _share(self, plan: Plan, request: Request, history: History) -> Plan:
        prefix = request.shared_prefix
        if (
            not self.share_prefix
            or plan.correct
            or plan.stop_layer < self.num_layers
            or plan.start_token >= prefix
            or history.prefix_donor(request) is None
        ):
            return plan
        return Plan(plan.start_layer, plan.stop_layer, prefix, prefix_tokens=prefix)


def compose(*parts: CachePolicy) -> CachePolicy:
    """Several policies at once, reusing only what all of them reuse (see `Composed`).

    Raises BadPolicy where that makes no sense: one policy, `Naive`, `Salted`, different depths, the
    same policy twice, the refresh of a cache that is exact already, or the correction of
    `UpdatableKV` beside parts that recompute what it corrects.
    """
    kinds = [type(part) for part in parts]
    if len(parts) < 2 or not all(issubclass(kind, CachePolicy) for kind in kinds):
        raise BadPolicy("compose: give at least two policies")
    names = ", ".join(part.id for part in parts)
    if len({part.num_layers for part in parts}) > 1:
        raise BadPolicy(f"compose: {names} differ in depth; build them for one model")
    if len(set(kinds)) < len(kinds) or Naive in kinds or Salted in kinds:
        raise BadPolicy(f"compose: {names}: the result is one of the parts; use that part alone")
    if UpdateLocality in kinds and {PeriodicRefresh, Stale} & {*kinds}:
        raise BadPolicy(
            f"compose: {names}: what is kept below the restart is exact already, and a refresh "
            "has nothing to renew; use update_locality without it"
        )
    if UpdatableKV in kinds and not {*kinds} <= {UpdatableKV, Stale, PrefixOnly}:
        raise BadPolicy(
            f"compose: {names}: the correction and another rule for the same cells; "
            "use updatable_kv alone, with freeze for frozen layers"
        )
    return Composed(parts)


def _due(request: Request, history: History, every: int) -> bool:
    """Whether a refresh round has come since the prompt was last renewed."""
    return request.round // every > history.visits[request.prompt].full_round // every
