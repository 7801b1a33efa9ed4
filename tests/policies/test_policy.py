"""Cache policies: closed forms of P1-5.3, invariants of plans and counts, exactness, bad input."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.policies.build import build_policies, parameters
from ember.policies.kinds import (
    KeepRegion,
    Naive,
    PeriodicRefresh,
    PrefixOnly,
    Salted,
    Stale,
    UpdatableKV,
    UpdateLocality,
    compose,
)
from ember.policies.plan import BadPolicy, Plan, Request, Update
from ember.policies.policy import POLICIES, CachePolicy
from ember.policies.simulator import Workload, simulate

CONFIGURED = [
    {"name": "naive"},
    {"name": "prefix_only", "freeze": None, "every": None, "rank": None},
    {"name": "update_locality", "freeze": 0.5},
    {"name": "periodic_refresh", "every": 10, "share_prefix": True},
    {"name": "updatable_kv", "rank": 8, "every": 10, "max_age": 4},
]


def every_policy(layers: int, freeze: int, every: int, tokens: int = 1):
    """One policy of each kind."""
    return [
        Naive(layers),
        PrefixOnly(layers),
        Salted(layers),
        Stale(layers),
        Stale(layers, every),
        UpdateLocality(layers, freeze),
        PeriodicRefresh(layers, every),
        UpdatableKV(layers, 4, every),
        UpdatableKV(layers, 4, every, freeze),
        KeepRegion(layers, first_layers=freeze),
        KeepRegion(layers, last_layers=freeze),
        KeepRegion(layers, last_tokens=tokens),
        compose(KeepRegion(layers, first_layers=freeze), PeriodicRefresh(layers, every)),
        compose(KeepRegion(layers, first_layers=freeze), PrefixOnly(layers)),
        compose(UpdateLocality(layers, freeze), PrefixOnly(layers)),
        compose(PeriodicRefresh(layers, every), PrefixOnly(layers)),
        compose(PeriodicRefresh(layers, every), Stale(layers, 1), PrefixOnly(layers)),
        compose(UpdatableKV(layers, 4, every), Stale(layers, 1)),
        compose(UpdatableKV(layers, 4, every), PrefixOnly(layers)),
    ]


shapes = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]), st.integers(0, shape[0]), st.just(shape[1]), st.just(shape[2])
    )
)  # layers, frozen layers, tokens, rounds between refreshes


@st.composite
def update_streams(draw, layers: int, rounds: int):
    """For each round from 2 on, an update of some layers, possibly of queries alone, or none."""
    out = {}
    for round in range(2, rounds + 1):
        changed = draw(st.sets(st.integers(0, layers - 1)))
        kv = draw(st.sets(st.sampled_from(sorted(changed)))) if changed else set()
        if draw(st.booleans()):
            out[round] = Update(round, frozenset(changed), f"v{round}", frozenset(kv))
    return out


# P1-5.3's periodic refresh: rounds 1, 10, 20 and 30 in full, half of the layers between.
HALF_STALE = compose(KeepRegion(36, first_layers=18), PeriodicRefresh(36, 10))


@pytest.mark.parametrize(
    ("policy", "ratio", "shown"),
    [
        (Naive(36), Fraction(1), "1.000000"),
        (UpdateLocality(36, 18), Fraction(31, 60), "0.516667"),
        (HALF_STALE, Fraction(17, 30), "0.566667"),
    ],
)
@pytest.mark.parametrize("tokens", [2, 64, 4096])
def test_closed_form_anchors(policy, ratio, shown, tokens):
    rounds = simulate(policy, Workload(3, tokens), 30)
    exact = sum(
        Fraction(stats.recompute_cells, stats.recompute_cells + stats.reuse_cells)
        for stats in rounds
    )
    assert exact / 30 == ratio
    assert f"{policy.totals()['recompute_ratio']:.6f}" == shown


def test_refresh_rounds_are_the_first_and_the_multiples():
    policy = HALF_STALE
    full = [stats.round for stats in simulate(policy, Workload(2, 8), 30) if stats.full_refreshes]
    assert full == [1, 10, 20, 30]


def cells(plan: Plan, layers: int, tokens: int) -> int:
    """Cells that a plan recomputes."""
    return sum((b - a) * (d - c) for a, b, c, d in plan.rectangles(layers, tokens))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, data=st.data())
def test_counts_are_consistent(shape, data):
    layers, freeze, tokens, every = shape
    prefix = data.draw(st.integers(0, tokens - 1))
    updates = data.draw(update_streams(layers, 5))
    m = data.draw(st.integers(1, tokens))
    for policy in every_policy(layers, freeze, every, m):
        for stats in simulate(policy, Workload(3, tokens, prefix), 5, updates.get):
            total = layers * tokens * 3
            assert stats.recompute_cells + stats.reuse_cells == total
            assert 0 <= stats.recompute_ratio <= 1
            assert stats.corrected_cells <= stats.reuse_cells
            assert 0 <= stats.stale_cells <= total
            assert stats.stale_cells <= stats.staleness <= stats.stale_cells * (stats.round - 1)
            assert stats.hits + stats.misses == stats.prompts == sum(stats.plans.values()) == 3
            assert sum(stats.recompute_by_layer) == stats.recompute_cells
            bands = [*stats.recompute_by_token(), (tokens, 0)]
            by_token = sum(
                (after - start) * cells for (start, cells), (after, _) in pairwise(bands)
            )
            assert by_token == stats.recompute_cells
            planned = sum(cells(plan, layers, tokens) * n for plan, n in stats.plans.items())
            assert planned == stats.recompute_cells
        assert policy.stats[0].reuse_cells == 0 or policy.totals()["hits"]


@settings(max_examples=40, deadline=None)
@given(shape=shapes, data=st.data())
def test_exact_policies_never_use_a_stale_cell(shape, data):
    layers, freeze, tokens, _ = shape
    updates = data.draw(update_streams(layers, 5))
    prefix = data.draw(st.integers(0, tokens - 1))
    locality = UpdateLocality(layers, freeze)
    for policy in (
        Naive(layers),
        PrefixOnly(layers),
        Salted(layers),
        locality,
        compose(UpdateLocality(layers, freeze), PrefixOnly(layers)),
        compose(Stale(layers, 0), PrefixOnly(layers)),
    ):
        for stats in simulate(policy, Workload(3, tokens, prefix), 5, updates.get):
            assert stats.stale_cells == 0


@settings(max_examples=30, deadline=None)
@given(shape=shapes, data=st.data())
def test_composition_reuses_no_more_than_its_parts(shape, data):
    layers, freeze, tokens, every = shape
    updates = data.draw(update_streams(layers, 6))
    workload = Workload(2, tokens)
    parts = [KeepRegion(layers, first_layers=freeze), PeriodicRefresh(layers, every)]
    both = simulate(compose(*parts), workload, 6, updates.get)
    # The last token's pass through reused layers is only for logits; the other part gives these.
    logits = [0, layers * workload.prompts]
    for part, slack in zip(parts, logits, strict=True):
        for joint, alone in zip(both, simulate(part, workload, 6, updates.get), strict=True):
            assert joint.reuse_cells <= alone.reuse_cells + slack


@settings(max_examples=30, deadline=None)
@given(shape=shapes, data=st.data())
def test_limits_of_the_parameters(shape, data):
    layers, _, tokens, _ = shape
    updates = data.draw(update_streams(layers, 5))
    workload = Workload(2, tokens)

    def plans(policy, updates=updates.get):
        return [stats.plans for stats in simulate(policy, workload, 5, updates)]

    assert plans(UpdateLocality(layers, 0)) == plans(Naive(layers))
    assert plans(PeriodicRefresh(layers, 1)) == plans(Naive(layers))
    assert plans(UpdatableKV(layers, 2, 1)) == plans(Naive(layers))
    assert plans(Stale(layers)) == plans(PeriodicRefresh(layers, 99))
    assert plans(KeepRegion(layers, last_tokens=tokens)) == plans(Naive(layers))
    frozen = simulate(UpdateLocality(layers, layers), workload, 5)
    assert [stats.recompute_ratio for stats in frozen] == [1, 0, 0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(shape=shapes, data=st.data())
def test_one_prompt_may_stand_for_its_equals(shape, data):
    """The simulator's shortcut counts what visiting every prompt would count."""
    layers, freeze, tokens, every = shape
    prefix = data.draw(st.integers(0, tokens - 1))
    updates = data.draw(update_streams(layers, 4))
    for policy in every_policy(layers, freeze, every):
        short = simulate(policy, Workload(4, tokens, prefix), 4, updates.get)
        policy.reset()
        for round in range(1, 5):
            if round in updates:
                policy.on_update(updates[round])
            for prompt in "0123":
                request = Request(round, prompt, tokens, prefix)
                policy.record(request, policy.plan(request))
        assert policy.stats == short


def test_an_update_of_the_last_query_leaves_all_kv_exact():
    update = Update(2, frozenset({3}), "v2", changed_kv=frozenset())
    policy = PeriodicRefresh(4, 10)
    (_, stats) = simulate(policy, Workload(1, 8), 2, lambda round: update)
    assert stats.stale_cells == 0
    # The hidden states above it did move, so a prompt whose layers are all reused runs its last
    # token again.
    (_, stats) = simulate(UpdateLocality(4, 4), Workload(1, 8), 2, lambda round: update)
    assert stats.plans == {Plan.last_tokens(4, 8): 1}


def test_an_update_without_change_leaves_everything_exact():
    update = Update(2, frozenset(), "v2")
    for policy in every_policy(4, 2, 10):
        assert simulate(policy, Workload(2, 8), 2, lambda round: update)[1].stale_cells == 0


def test_layers_below_the_first_changed_one_stay_exact():
    update = Update(2, frozenset({2, 3}), "v2")
    (_, stats) = simulate(PeriodicRefresh(4, 10), Workload(1, 8), 2, lambda round: update)
    # Layers 2 and 3 of 7 tokens, and layer 3 of the last: it attended to stale KV in layer 2.
    assert stats.stale_cells == 2 * 7 + 1


def test_restart_above_stale_layers_stays_stale():
    stats = simulate(KeepRegion(4, first_layers=2), Workload(1, 8), 3)
    assert stats[2].recompute_ratio == 0.5
    assert (stats[1].mean_staleness, stats[2].mean_staleness) == (1.0, 2.0)


def test_recomputing_below_helps_where_recomputing_above_does_not():
    """The axis of P1-5.2: fresh first layers are exact, fresh last layers are not."""
    first_fresh = simulate(KeepRegion(3, last_layers=1), Workload(1, 64), 2)[1]
    last_fresh = simulate(KeepRegion(3, first_layers=1), Workload(1, 64), 2)[1]
    assert first_fresh.stale_cells == 63
    assert last_fresh.stale_cells == 3 * 64


def test_correction_is_exact_in_the_first_changed_layer():
    stats = simulate(UpdatableKV(4, 8, 10, freeze=1), Workload(1, 8), 3)
    assert [s.corrected_cells for s in stats] == [0, 3 * 7, 3 * 7]
    # Layers 2 and 3 of 1..3, but for the last token in layer 2: it ran over exact KV only.
    assert [s.stale_cells for s in stats] == [0, 2 * 8 - 1, 2 * 8 - 1]


def test_only_the_first_prompt_of_a_round_computes_the_shared_prefix():
    for stats in simulate(PrefixOnly(2), Workload(5, 10, 4), 3):
        assert stats.plans == {Plan.full(2): 1, Plan(0, 2, 4, prefix_tokens=4): 4}
        assert stats.recompute_cells == 2 * (10 + 4 * 6)


def test_a_missed_refresh_is_made_up_at_the_next_visit():
    policy = PeriodicRefresh(2, 10)
    kinds = {}
    for round in (1, 9, 11, 12):
        if round > 1:
            policy.on_update(Update(round, frozenset({0}), f"v{round}"))
        request = Request(round, "p", 8)
        plan = policy.plan(request)
        policy.record(request, plan)
        kinds[round] = plan.full_refresh
    assert kinds == {1: True, 9: False, 11: True, 12: False}


def test_locality_remembers_updates_between_visits():
    policy = UpdateLocality(4, 2)
    policy.record(request := Request(1, "p", 8), policy.plan(request))
    policy.on_update(Update(2, frozenset({1}), "low"))
    policy.on_update(Update(3, frozenset({3}), "high"))
    assert policy.plan(Request(3, "p", 8)).full_refresh


def test_a_forgotten_prompt_is_prefilled_in_full():
    policy = PeriodicRefresh(4, 10)
    policy.record(request := Request(1, "p", 8), policy.plan(request))
    assert not policy.plan(Request(2, "p", 8)).full_refresh
    policy.forget("p")
    assert policy.plan(Request(2, "p", 8)).full_refresh


def test_a_round_prefills_no_prompt_twice():
    """Candidates that are requests of their own find their prompt, under every policy."""
    last = Plan.last_tokens(4, 8)
    for policy in every_policy(4, 2, 10):
        alone = simulate(policy, Workload(3, 8, 4), 4)
        each = simulate(policy, Workload(3, 8, 4, requests_each=5), 4)
        for once, often in zip(alone, each, strict=True):
            assert often.prompts == 5 * once.prompts == 15
            assert often.plans == once.plans + Counter({last: 12})
            assert often.recompute_cells == once.recompute_cells + 12 * 4


def test_an_update_within_a_round_ends_its_whole_prompt_hits():
    policy = Naive(4)
    request = Request(1, "p", 8)
    policy.record(request, policy.plan(request))
    assert policy.plan(request) == Plan.last_tokens(4, 8)
    policy.on_update(Update(1, frozenset({0}), "v"))
    assert policy.plan(request).full_refresh


def test_a_salted_entry_serves_as_long_as_its_version():
    plans = [
        stats.plans
        for stats in simulate(
            Salted(4), Workload(2, 8, 4), 3, {3: Update(3, frozenset({1}), "v")}.get
        )
    ]
    shared = {Plan.full(4): 1, Plan(0, 4, 4, prefix_tokens=4): 1}
    assert plans == [shared, {Plan.last_tokens(4, 8): 2}, shared]


def test_no_entry_is_older_than_max_age_and_every_reuse_has_its_age():
    policies = [Stale(4, 3), compose(PeriodicRefresh(4, 10), Stale(4, 3))]
    for policy in policies:
        found = [dict(stats.ages) for stats in simulate(policy, Workload(2, 8), 9)]
        assert found[:5] == [{}, {1: 2}, {2: 2}, {3: 2}, {}]
        assert max(age for ages in found for age in ages) == 3
    # Left alone for longer, an entry is refreshed when it is next asked for.
    rare = simulate(Stale(4, 3), Workload(2, 8, recurrence=4), 12)
    assert [stats.full_refreshes for stats in rare] == [2] * 12


@pytest.mark.parametrize("policy", [Stale(4), UpdateLocality(4, 2), PeriodicRefresh(4, 6)])
def test_the_rarer_a_prompt_the_less_is_reused(policy):
    """30 rounds in which a prompt comes every 1, 4 or 16."""
    shares = []
    for recurrence in (1, 4, 16):
        simulate(policy, Workload(3, 8, recurrence=recurrence), 30)
        shares.append(policy.totals()["recompute_ratio"])
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert (
        sum(stats.misses for stats in simulate(Stale(4), Workload(1, 8, recurrence=16), 30)) == 16
    )


def test_a_stale_prefix_is_shared_with_nobody():
    policy = compose(KeepRegion(4, first_layers=2), PrefixOnly(4))
    first, second = simulate(policy, Workload(2, 8, 4), 2)
    assert first.plans == {Plan.full(4): 1, Plan(0, 4, 4, prefix_tokens=4): 1}
    assert second.plans == {Plan.restart(4, 2): 2}


def test_planning_changes_nothing():
    policy = PrefixOnly(2)
    request = Request(1, "p", 8, 4)
    assert policy.plan(request) == policy.plan(request) == Plan.full(2)
    assert policy.stats == []


def test_build_gives_short_ids_and_labels():
    policies = build_policies(CONFIGURED, 36)
    assert [policy.id for policy in policies] == [
        "naive",
        "prefix_only",
        "locality_18",
        "refresh_10_prefix_only",
        "updatable_r8_k10_age_4",
    ]
    assert policies[2].label == "Update locality, 18/36 layers frozen"
    assert (policies[2].frozen_layers, policies[2].boundaries) == (18, (18,))
    assert (policies[4].keeps_factors, policies[4].rank) == (True, 8)
    (frozen,) = build_policies([{"name": "naive", "freeze": 0.5}], 36)
    assert (frozen.id, frozen.frozen_layers) == ("naive_freeze_18", 18)
    assert build_policies([{"name": "update_locality", "freeze_layers": 3}], 4)[0].freeze == 3
    sharing = {"name": "update_locality", "freeze": 0.5, "share_prefix": True}
    assert build_policies([sharing], 4)[0].id == "locality_2_prefix_only"
    assert build_policies([{"name": "keep_region", "last_tokens": 3}], 4)[0].value == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "periodic_refrehs"}, "Did you mean 'periodic_refresh'"),
        ({"name": None}, "unknown policy None"),
        ({"name": "naive", "every": 3}, "naive has no 'every'"),
        ({"name": "updatable_kv", "rank": 8, "evry": 3}, "Did you mean 'every'"),
        ({"name": "update_locality"}, "needs freeze"),
        ({"name": "periodic_refresh"}, "needs every"),
        ({"name": "updatable_kv", "every": 3}, "needs rank"),
        ({"name": "update_locality", "freeze": 1.5}, "freeze is 1.5"),
        ({"name": "update_locality", "freeze": True}, "freeze is True"),
        ({"name": "update_locality", "freeze_layers": 5}, "freeze_layers is 5"),
        ({"name": "update_locality", "freeze_layers": -1}, "set it to 0..4"),
        ({"name": "update_locality", "freeze": 0.5, "freeze_layers": 2}, "set one of them"),
        ({"name": "periodic_refresh", "every": 0}, "every is 0"),
        ({"name": "updatable_kv", "every": 3, "rank": 0}, "rank is 0"),
        ({"name": "keep_region"}, "exactly one"),
        ({"name": "keep_region", "first_layers": 1, "last_tokens": 1}, "exactly one"),
        ({"name": "keep_region", "last_tokens": 0}, "last_tokens is 0; set it to 1 or more"),
        ({"name": "stale", "max_age": -1}, "max_age is -1; set it to 0 or more"),
        ({"name": "periodic_refresh", "every": 3, "freeze": 0.5}, "has no 'freeze'"),
    ],
)
def test_bad_policies_are_named_with_a_remedy(spec, message):
    with pytest.raises(BadPolicy, match=message):
        build_policies([spec], 4)


def test_a_dataclass_with_a_name_is_a_policy(monkeypatch):
    """Nothing else is needed for a configuration to name it, and its fields are checked."""
    monkeypatch.setattr("ember.policies.policy.POLICIES", registry := dict(POLICIES))
    monkeypatch.setattr("ember.policies.build.POLICIES", registry)

    @dataclass(eq=False, repr=False)
    class LastHalf(CachePolicy):
        name = "last_half"
        composes = ("share_prefix",)
        at_least: int
        label = "Last half"

        @property
        def id(self):
            return f"last_half_{self.at_least}"

        def choose(self, request, history):
            half = max(self.at_least, request.tokens // 2)
            return Plan.last_tokens(self.num_layers, request.tokens, half)

    (policy,) = build_policies([{"name": "last_half", "at_least": 2}], 4)
    assert policy.id == "last_half_2"
    assert parameters(LastHalf) == {"at_least": True, "share_prefix": False}
    assert simulate(policy, Workload(1, 8), 2)[1].recompute_ratio == 0.5
    shared = {"name": "last_half", "at_least": 2, "share_prefix": True}
    assert build_policies([shared], 4)[0].id == "last_half_2_prefix_only"
    with pytest.raises(BadPolicy, match="last_half needs at_least"):
        build_policies([{"name": "last_half"}], 4)
    with pytest.raises(BadPolicy, match="Did you mean 'last_half'"):
        build_policies([{"name": "last_haft"}], 4)
    with pytest.raises(ValueError, match="two policies are called naive"):
        type("Again", (CachePolicy,), {"name": "naive"})


def test_every_policy_of_the_registry_is_tried_here():
    assert {type(policy).name for policy in every_policy(4, 2, 3) if hasattr(policy, "name")} == {
        *POLICIES
    }


def test_repeated_policies_are_refused():
    with pytest.raises(BadPolicy, match="locality_2 appears more than once"):
        build_policies([{"name": "update_locality", "freeze": f} for f in (0.5, 0.51)], 4)


@pytest.mark.parametrize(
    "parts",
    [
        [UpdateLocality(4, 2)],
        [Naive(4), UpdateLocality(4, 2)],
        [Salted(4), UpdateLocality(4, 2)],
        [PeriodicRefresh(4, 2), PeriodicRefresh(4, 3)],
        [KeepRegion(4, first_layers=2), PeriodicRefresh(6, 3)],
        [UpdateLocality(4, 2), PeriodicRefresh(4, 3)],
        [UpdateLocality(4, 2), Stale(4, 3)],
        [UpdatableKV(4, 8, 2), PeriodicRefresh(4, 3)],
    ],
)
def test_senseless_compositions_are_refused(parts):
    with pytest.raises(BadPolicy, match="compose"):
        compose(*parts)


def test_bad_requests_and_updates_are_refused():
    policy = Naive(4)
    with pytest.raises(BadPolicy, match=r"layers \[4\]"):
        policy.on_update(Update(2, frozenset({4}), "v"))
    with pytest.raises(BadPolicy, match="changed_kv"):
        Update(2, frozenset({1}), "v", changed_kv=frozenset({2}))
    with pytest.raises(BadPolicy, match="shorter than the prompt"):
        Request(1, "p", 4, 4)
    policy.record(request := Request(1, "p", 8), policy.plan(request))
    with pytest.raises(BadPolicy, match="key prompts by their content"):
        policy.plan(Request(1, "p", 9))
    with pytest.raises(BadPolicy, match="nothing yet"):
        Naive(4).totals()
    with pytest.raises(BadPolicy, match="does not fit"):
        Plan(3, 2, 0).check(4, 8)
    with pytest.raises(BadPolicy, match="at least one"):
        simulate(policy, Workload(1, 8), 0)
    for what in ("prompts", "requests_each", "recurrence"):
        with pytest.raises(BadPolicy, match=f"{what} is 0"):
            Workload(**{"prompts": 1, "prompt_tokens": 8, what: 0})
