"""Cache policies (P1-5): what to recompute of a prompt's KV cache after the weights have moved.

One interface for all: `on_update` tells a policy of each update, `plan` asks it what to recompute
of one prompt, `record` tells it that the plan was carried out, `stats` counts. The simulator and
the engine drive the same objects. A policy is defined by `choose` alone; history, first visits and
statistics are the base class's. No torch.

Which cells may be reused is explicit: the first k layers (`UpdateLocality`, exact, or
`KeepRegion`), the last k layers, all but the last m tokens (`KeepRegion`), the round's shared
prefix (`PrefixOnly`), everything for a while (`PeriodicRefresh`), everything after a correction
(`UpdatableKV`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ember.policies.ledger import Bands, Ledger, Tally
from ember.policies.plan import BadPolicy, Plan, Request, Update


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
    hits: int = 0  # prompts that reused something
    misses: int = 0
    recompute_by_layer: list[int] = field(default_factory=list)
    token_steps: Counter = field(default_factory=Counter)
    plans: Counter = field(default_factory=Counter)  # Plan -> prompts

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

    def add(self, plan: Plan, tokens: int, tally: Tally, prompts: int = 1) -> None:
        """Count `prompts` prompts of equal history."""
        recomputed = sum(tally.recomputed)
        self.prompts += prompts
        self.recompute_cells += prompts * recomputed
        self.reuse_cells += prompts * (self.num_layers * tokens - recomputed)
        self.corrected_cells += prompts * tally.corrected
        self.full_refreshes += prompts * plan.full_refresh
        self.stale_cells += prompts * tally.stale
        self.staleness += prompts * tally.staleness
        self.hits += prompts * (not plan.full_refresh)
        self.misses += prompts * plan.full_refresh
        before = self.recompute_by_layer or [0] * self.num_layers
        self.recompute_by_layer = [
            a + prompts * b for a, b in zip(before, tally.recomputed, strict=True)
        ]
        for token, step in tally.token_steps:
            self.token_steps[token] += prompts * step
        self.plans[plan] += prompts


@dataclass(frozen=True)
class Totals:
    """Statistics over all rounds. recompute_ratio and mean_staleness are means over rounds."""

    rounds: int
    prompts: int
    hits: int
    misses: int
    recompute_cells: int
    reuse_cells: int
    corrected_cells: int
    full_refreshes: int
    recompute_ratio: float
    mean_staleness: float


@dataclass(frozen=True)
class Visit:
    """The last prefill of a prompt."""

    tokens: int
    update: int  # number of updates it had seen
    full_round: int  # round that last renewed all of it


class History:
    """What happened so far: updates, last visits, and who computed this round's shared prefix."""

    def __init__(self):
        self.updates: list[Update] = []
        self.visits: dict[str, Visit] = {}
        self.prefix_owner: tuple[int, int, int, str] | None = None

    def since(self, prompt: str) -> list[Update]:
        """Updates that came after the prompt's last prefill."""
        return self.updates[self.visits[prompt].update :]

    def prefix_donor(self, request: Request) -> str | None:
        """Prompt whose prefill computed the request's shared prefix with the present weights."""
        wanted = (request.round, len(self.updates), request.shared_prefix)
        if not request.shared_prefix or self.prefix_owner is None:
            return None
        return self.prefix_owner[3] if self.prefix_owner[:3] == wanted else None


class CachePolicy:
    """Base of all policies. Subclasses set `id`, `label` and implement `choose`.

    frozen_layers: first layers that the policy asks the trainer to leave alone.
    boundaries: layers whose entering hidden states must be kept with the cache.
    keeps_factors: low-rank activations and raw keys must be kept with the cache.
    """

    frozen_layers = 0
    boundaries: tuple[int, ...] = ()
    keeps_factors = False

    def __init__(self, num_layers: int, id: str, label: str):
        if num_layers < 1:
            raise BadPolicy(f"policy {id}: a model has at least one layer, not {num_layers}")
        self.num_layers, self.id, self.label = num_layers, id, label
        self.reset()

    def __repr__(self):
        return f"<{type(self).__name__} {self.id}, {self.num_layers} layers>"

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
        """What to recompute of this prompt now. Changes nothing: `record` what is carried out."""
        visit = self.history.visits.get(request.prompt)
        if visit and visit.tokens != request.tokens:
            raise BadPolicy(
                f"prompt {request.prompt} had {visit.tokens} tokens and now has {request.tokens}; "
                "key prompts by their content"
            )
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
        full_round = request.round if plan.renews or not before else before.full_round
        history.visits[request.prompt] = Visit(request.tokens, now, full_round)
        computed = plan.start_token == 0 and plan.stop_layer == self.num_layers
        if request.shared_prefix and computed and history.prefix_donor(request) is None:
            history.prefix_owner = (request.round, now, request.shared_prefix, request.prompt)
        if not self.stats or self.stats[-1].round != request.round:
            version = history.updates[-1].version if history.updates else "base"
            self.stats.append(RoundStats(request.round, self.num_layers, version))
        self.stats[-1].add(plan, request.tokens, tally, prompts)
        return self.stats[-1]

    def forget(self, prompt: str) -> None:
        """The prompt's cache is gone (evicted)."""
        self.history.visits.pop(prompt, None)
        self._bands.pop(prompt, None)
        owner = self.history.prefix_owner
        if owner and owner[3] == prompt:
            self.history.prefix_owner = None

    def totals(self) -> Totals:
        """Statistics over all recorded rounds."""
        rounds = self.stats
        if not rounds:
            raise BadPolicy(f"policy {self.id} has recorded nothing yet; run a round first")

        def total(name: str) -> int:
            return sum(getattr(stats, name) for stats in rounds)

        return Totals(
            rounds=len(rounds),
            prompts=total("prompts"),
            hits=total("hits"),
            misses=total("misses"),
            recompute_cells=total("recompute_cells"),
            reuse_cells=total("reuse_cells"),
            corrected_cells=total("corrected_cells"),
            full_refreshes=total("full_refreshes"),
            recompute_ratio=sum(stats.recompute_ratio for stats in rounds) / len(rounds),
            mean_staleness=sum(stats.mean_staleness for stats in rounds) / len(rounds),
        )


class Naive(CachePolicy):
    """An update invalidates everything: every prefill is a full one."""

    def __init__(self, num_layers: int):
        super().__init__(num_layers, "naive", "Naive")

    def choose(self, request: Request, history: History) -> Plan:
        return Plan.full(self.num_layers)


class PrefixOnly(CachePolicy):
    """KV is valid within a round: the round's first prompt computes the shared prefix, the others
    take it from there. Exact."""

    def __init__(self, num_layers: int):
        super().__init__(num_layers, "prefix_only", "Prefix only")

    def choose(self, request: Request, history: History) -> Plan:
        if history.prefix_donor(request) is None:
            return Plan.full(self.num_layers)
        prefix = request.shared_prefix
        return Plan(0, self.num_layers, prefix, prefix_tokens=prefix)

    choose_first = choose


class UpdateLocality(CachePolicy):
    """The first `freeze` layers do not train: their KV stays exact, and the prefill restarts at
    layer `freeze` from the hidden states kept there. Exact always: an update that reaches below
    the boundary after all costs a full prefill."""

    def __init__(self, num_layers: int, freeze: int):
        self.freeze = layer_count("update_locality", freeze, num_layers)
        super().__init__(
            num_layers,
            f"locality_{self.freeze}",
            f"Update locality, {self.freeze}/{num_layers} layers frozen",
        )
        self.frozen_layers = self.freeze
        self.boundaries = (self.freeze,) if self.freeze else ()

    def choose(self, request: Request, history: History) -> Plan:
        updates = history.since(request.prompt)
        if all(update.first_changed(self.num_layers) >= self.freeze for update in updates):
            return Plan.restart(self.num_layers, self.freeze)
        if all(update.first_stale(self.num_layers) == self.num_layers for update in updates):
            return Plan.last_tokens(self.num_layers, request.tokens)
        return Plan.full(self.num_layers)


class PeriodicRefresh(CachePolicy):
    """Full refresh in round 1 and in every multiple of `every`; stale KV between, with the last
    token run through the present weights to give logits."""

    def __init__(self, num_layers: int, every: int):
        self.every = _every("periodic_refresh", every)
        super().__init__(num_layers, f"refresh_{every}", f"Refresh every {every} rounds")

    def choose(self, request: Request, history: History) -> Plan:
        if _due(request, history, self.every):
            return Plan.full(self.num_layers)
        return Plan.last_tokens(self.num_layers, request.tokens)


class UpdatableKV(CachePolicy):
    """Stale KV corrected in place by the low-rank update of rank `rank` (P1-8): exact in the first
    changed layer, approximate above it. Full refresh in round 1 and every multiple of `every`."""

    keeps_factors = True

    def __init__(self, num_layers: int, rank: int, every: int, freeze: int = 0):
        if _not_int(rank) or rank < 1:
            raise BadPolicy(f"updatable_kv: rank is {rank!r}; set it to the adapter's rank, >= 1")
        self.rank, self.every = rank, _every("updatable_kv", every)
        self.frozen_layers = layer_count("updatable_kv", freeze, num_layers)
        frozen = f"_freeze_{freeze}" if freeze else ""
        super().__init__(
            num_layers,
            f"updatable_r{rank}_k{every}{frozen}",
            f"Updatable KV, rank {rank}, refresh every {every} rounds"
            + (f", {freeze}/{num_layers} layers frozen" if freeze else ""),
        )

    def choose(self, request: Request, history: History) -> Plan:
        if _due(request, history, self.every):
            return Plan.full(self.num_layers)
        moved = any(update.kv_layers for update in history.since(request.prompt))
        return Plan.last_tokens(self.num_layers, request.tokens, correct=moved)


class KeepRegion(CachePolicy):
    """Reuse a fixed region whatever has changed: the axis of P1-5.2, for studies of its error.

    Exactly one of: first_layers (the prefill restarts above them from stale hidden states),
    last_layers (only the layers below them are recomputed), last_tokens (only these are
    recomputed, in all layers).
    """

    def __init__(
        self,
        num_layers: int,
        first_layers: int | None = None,
        last_layers: int | None = None,
        last_tokens: int | None = None,
    ):
        given = {
            "first_layers": first_layers,
            "last_layers": last_layers,
            "last_tokens": last_tokens,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise BadPolicy(
                "keep_region: set exactly one of first_layers, last_layers and last_tokens, "
                f"not {', '.join(given) or 'none'}"
            )
        ((self.axis, value),) = given.items()
        if self.axis == "last_tokens" and (_not_int(value) or value < 1):
            raise BadPolicy(f"keep_region: last_tokens is {value!r}; recompute at least the last 1")
        if self.axis != "last_tokens":
            layer_count("keep_region", value, num_layers, self.axis)
        self.value = value
        label = {
            "first_layers": f"First {value}/{num_layers} layers kept",
            "last_layers": f"Last {value}/{num_layers} layers kept",
            "last_tokens": f"All but the last {value} tokens kept",
        }[self.axis]
        super().__init__(num_layers, f"keep_{self.axis}_{value}", label)
        self.boundaries = (value,) if self.axis == "first_layers" and value else ()

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
    recomputation begin behind it.
    """

    def __init__(self, parts: Sequence[CachePolicy]):
        first = parts[0]
        super().__init__(
            first.num_layers,
            "_".join(part.id for part in parts),
            " + ".join([first.label, *(p.label[0].lower() + p.label[1:] for p in parts[1:])]),
        )
        self.parts = tuple(part for part in parts if not isinstance(part, PrefixOnly))
        self.share_prefix = len(self.parts) < len(parts)
        self.frozen_layers = max(part.frozen_layers for part in parts)
        self.boundaries = tuple(sorted({layer for part in parts for layer in part.boundaries}))
        self.keeps_factors = any(part.keeps_factors for part in parts)

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

    Raises BadPolicy where that makes no sense: one policy, `Naive`, different depths, the same
    policy twice, or the correction of `UpdatableKV` beside parts that recompute what it corrects.
    """
    kinds = [type(part) for part in parts]
    if len(parts) < 2 or not all(issubclass(kind, CachePolicy) for kind in kinds):
        raise BadPolicy("compose: give at least two policies")
    names = ", ".join(part.id for part in parts)
    if len({part.num_layers for part in parts}) > 1:
        raise BadPolicy(f"compose: {names} differ in depth; build them for one model")
    if len(set(kinds)) < len(kinds) or Naive in kinds:
        raise BadPolicy(f"compose: {names}: the result is one of the parts; use that part alone")
    if KeepRegion in kinds and PrefixOnly in kinds:
        raise BadPolicy(f"compose: {names}: a stale prefix must not be shared; drop one")
    if UpdatableKV in kinds:
        raise BadPolicy(
            f"compose: {names}: the correction and another rule for the same cells; "
            "use updatable_kv alone, with freeze for frozen layers"
        )
    return Composed(parts)


def layer_count(name: str, value, num_layers: int, key: str = "freeze_layers") -> int:
    if _not_int(value) or not 0 <= value <= num_layers:
        raise BadPolicy(
            f"{name}: {key} is {value!r}; set it to 0..{num_layers}, the model's layers"
        )
    return value


def _every(name: str, value) -> int:
    if _not_int(value) or value < 1:
        raise BadPolicy(f"{name}: every is {value!r}; set it to at least 1 round")
    return value


def _not_int(value) -> bool:
    return isinstance(value, bool) or not isinstance(value, int)


def _due(request: Request, history: History, every: int) -> bool:
    """Whether a refresh round has come since the prompt was last renewed."""
    return request.round // every > history.visits[request.prompt].full_round // every
