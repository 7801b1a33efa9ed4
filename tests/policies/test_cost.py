"""The cost model: every term against sums done by hand, properties, what is missing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ember.measure.statistics import interval
from ember.policies.build import build_policies
from ember.policies.cost import (
    SAVED,
    TERMS,
    MissingMeasurement,
    SinglePrices,
    memory,
    plan_columns,
    plans_of,
    policy_cost,
    round_terms,
)
from ember.policies.plan import Plan
from ember.policies.simulator import Workload, simulate
from tests.policies.prices import (
    BEHIND,
    CORRECT,
    FULL,
    LAST,
    LAYERS,
    LOOP,
    STEP,
    TIMES,
    latency,
    learner,
    prices,
    profile,
    restart,
    rollout,
    store,
)

ARMS = [
    {"name": "naive"},
    {"name": "salted"},
    {"name": "prefix_only"},
    {"name": "update_locality", "freeze": 0.5},
    {"name": "update_locality", "freeze": 0.5, "share_prefix": True},
    {"name": "periodic_refresh", "every": 3},
    {"name": "updatable_kv", "rank": 8, "every": 3, "share_prefix": True},
    {"name": "stale", "share_prefix": True},
]


def row(round, plans, rank=0, frozen=0, boundaries=(), ages=()):
    """A row of POLICY_ROUNDS with {plan: prefills}."""
    about = {"round": round, "num_layers": LAYERS, "rank": rank, "frozen_layers": frozen}
    about |= {"boundaries": list(boundaries), "ages": list(ages)}
    return about | plan_columns(plans.items())


def history(spec, loop=LOOP, rounds=6):
    """What a policy does over some rounds, as rows of POLICY_ROUNDS."""
    (policy,) = build_policies([spec], LAYERS)
    requests = {"requests_each": loop.requests_each, "recurrence": loop.recurrence}
    workload = Workload(loop.prompts, loop.context, loop.prefix, **requests)
    about = (getattr(policy, "rank", 0), policy.frozen_layers, policy.boundaries)
    return [
        row(stats.round, stats.plans, *about, ages=stats.ages)
        for stats in simulate(policy, workload, rounds)
    ]


@pytest.mark.parametrize("asked", TIMES, ids=str)
def test_a_plan_costs_its_measured_time(asked):
    plan, rank, frozen, boundaries = asked
    prefill, correction, logits = prices().fill(plan.fill(100, rank, frozen, boundaries))
    found = (1e3 * prefill[0], 1e3 * correction[0], logits)
    assert found == pytest.approx(TIMES[asked])


def test_every_term_by_hand():
    """Two rounds of 4 prompts x 2 candidates with a correction, over a call of exactly that."""
    first = round_terms(prices(), row(1, {FULL: 1, BEHIND: 3}, rank=8), first=True)
    second = round_terms(prices(), row(2, {CORRECT: 4}, rank=8, ages=[1]), first=False)
    call = {"decode": 0.9, "sampling": 0.08, "transfer": 0.02, "host": 0.5}
    tokens = 4 * 100 + 4 * 2 * 10  # prompts once, and their completions
    learner = tokens / 400 * 2.0
    by_hand = {"prefill": 1.1 + 3 * 0.66, "first_step": 0, "correction": 0} | call
    by_hand |= {"store": 0, "update": 0, "learner": learner}
    assert {term: seconds[0] for term, seconds in first.items()} == pytest.approx(by_hand)
    by_hand |= {"prefill": 4 * 0.003, "first_step": STEP, "correction": 4 * 0.04, "update": 0.25}
    assert {term: seconds[0] for term, seconds in second.items()} == pytest.approx(by_hand)
    assert tuple(second) == TERMS


def test_savings_are_of_prefill_rollout_and_round():
    costs = policy_cost(prices(), [row(1, {FULL: 4}), row(2, {LAST: 4}, ages=[1])])
    kept = 4 * 0.002 + STEP
    for number, mine, learn in ((0, 4.0, 2.4), (1, 4.0 + kept, 4.8)):
        naive, beside = 4.0 * (number + 1), 1.5 * (number + 1)
        update, found = 0.25 * number, costs[number]
        assert found["prefill_saved"] == pytest.approx(1 - mine / naive)
        assert found["rollout_saved"] == pytest.approx(1 - (mine + beside) / (naive + beside))
        whole = [arm + beside + learn + update for arm in (mine, naive)]
        assert found["round_saved"] == pytest.approx(1 - whole[0] / whole[1])
        assert found["cumulative_s"] == pytest.approx(whole[0])
    assert costs[1]["round_s"] == pytest.approx(kept + 1.5 + 0.25 + 2.4)


def test_a_call_is_scaled_to_the_round():
    loop = replace(LOOP, prompts=40)
    terms = round_terms(prices(loop), row(1, {LAST: 40}), first=True)
    assert terms["decode"][0] == pytest.approx(10 * 0.9)
    assert terms["first_step"][0] == pytest.approx(10 * STEP)
    assert terms["learner"][0] == pytest.approx(10 * 2.4)


def test_the_learner_runs_a_prompt_once_or_for_each_completion():
    assert (LOOP.learner_tokens, replace(LOOP, learner="independent").learner_tokens) == (480, 880)
    # P1-6.1: 0.31 and 1.74 million tokens at 2048/128.
    large = replace(LOOP, context=2048, generation=128, prompts=100, candidates=8)
    assert large.learner_tokens == 307_200
    assert replace(large, learner="independent").learner_tokens == 1_740_800
    assert prices().learner(2)[0] == pytest.approx(480 / 400 * 1.2), "frozen layers save a part"


def test_the_micro_batch_has_the_rounds_prompts_and_the_nearest_completions():
    near, far = learner(generation=12, ms=1000.0), learner(generation=20, ms=9e9)
    loop = prices(learner=pd.concat([far.assign(point="far"), near.assign(point="near")]))
    assert loop.learner(0)[0] == pytest.approx(480 / 400 * 1.0)
    assert loop.micro_batch == "near"
    assert prices(learner=learner(peak_gb=None)).learner_bytes(0) == 0, "a CPU does not tell"


def test_naive_with_frozen_layers_saves_the_learners_part_alone():
    cost = policy_cost(prices(), history({"name": "naive", "freeze": 0.5}, rounds=1))[-1]
    assert cost["prefill_saved"] == cost["rollout_saved"] == 0
    assert cost["round_saved"] == pytest.approx(480 / 400 * 0.8 / (4.0 + 1.5 + 2.4))


def test_independent_candidates_find_the_whole_prompt():
    loop = replace(LOOP, sharing="independent")
    naive = history({"name": "naive"}, loop)
    assert dict(map(reversed, plans_of(naive[1]))) == {FULL: 4, LAST: 4}
    terms = round_terms(prices(loop), naive[1], first=False)
    assert terms["prefill"][0] == pytest.approx(4 * 1.0 + 4 * 0.002)
    assert terms["decode"][0] == pytest.approx(1.1), "rows read a prompt each"
    assert terms["first_step"][0] == pytest.approx(1.1 / 9 / 2), "of half of the rows"


@pytest.mark.parametrize("spec", ARMS, ids=str)
def test_candidates_that_share_their_prompt_never_cost_more(spec):
    alone = replace(LOOP, sharing="independent")
    costs = [policy_cost(prices(loop), history(spec, loop)) for loop in (LOOP, alone)]
    for shared, independent in zip(*costs, strict=True):
        assert shared["cumulative_s"] <= independent["cumulative_s"]


@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_naive_saves_exactly_nothing_in_every_resample(sharing):
    loop = replace(LOOP, sharing=sharing)
    uneven = {"restart": restart(spread=(0.9, 1.0, 1.3)), "rollout": rollout(spread=(1, 1.5, 2))}
    for cost in policy_cost(prices(loop, **uneven), history({"name": "naive"}, loop)):
        assert {cost[f"{name}_saved{end}"] for name in SAVED for end in ("", "_low", "_high")} == {
            0
        }


@pytest.mark.parametrize("spec", ARMS, ids=str)
def test_intervals_hold_the_estimate_and_terms_add_up(spec):
    uneven = {"restart": restart(spread=(0.9, 1.0, 1.3)), "rollout": rollout(spread=(1, 1.5, 2))}
    for cost in policy_cost(prices(**uneven), history(spec)):
        assert cost["cumulative_low_s"] <= cost["cumulative_s"] <= cost["cumulative_high_s"]
        for name in SAVED:
            low, mid, high = (cost[f"{name}_saved{end}"] for end in ("_low", "", "_high"))
            assert low <= mid <= high < 1
        assert cost["round_s"] == pytest.approx(sum(cost[f"{term}_s"] for term in TERMS))


def test_a_policy_that_recomputes_nothing_costs_no_prefill():
    nothing = {**TIMES, (LAST, 0, 0, ()): (0.0, 0.0, False)}
    found = policy_cost(prices(restart=restart(times=nothing)), history({"name": "stale"}))
    for cost in found[1:]:
        assert cost["prefill_s"] == cost["correction_s"] == 0
        assert cost["first_step_s"] == pytest.approx(STEP)


@pytest.mark.parametrize("spec", ARMS[3:], ids=str)
def test_the_rarer_a_prompt_comes_the_less_is_saved(spec):
    saved = []
    for recurrence in (1, 2, 4):
        loop = replace(LOOP, recurrence=recurrence)
        saved.append(policy_cost(prices(loop), history(spec, loop, 12))[-1]["prefill_saved"])
    assert saved == sorted(saved, reverse=True)
    assert saved[0] > saved[-1]


def test_policies_are_resampled_together():
    """Where two arms share a price, it does not widen the interval between them."""
    uneven = prices(rollout=rollout(spread=(1, 2, 3)))
    again = prices(rollout=rollout(spread=(1, 2, 3)))
    assert (uneven.phases["decode"] == again.phases["decode"]).all()
    cost = policy_cost(uneven, history({"name": "prefix_only"}))[-1]
    assert cost["prefill_saved_high"] - cost["prefill_saved_low"] == pytest.approx(0)
    assert cost["rollout_saved_high"] - cost["rollout_saved_low"] > 0.01
    assert uneven.fewest == 1
    spread = [interval(prices(restart=restart(spread=s)).fill(FULL.fill(100, 0, 0, ()))[0])
              for s in ((0.8, 1.0, 1.3), (0.99, 1.0, 1.01), (1.0, 1.0, 1.0))]  # fmt: skip
    widths = [high - low for low, high in spread]
    assert widths[0] > widths[1] > widths[2] == 0


def test_memory_by_hand():
    """Kept: 4 entries of 1000 bytes KV, 80 of factors and 500 of raw keys; beside it weights and
    the round's KV, 5000, or the learner's 6000."""
    need = memory(prices(), history({"name": "updatable_kv", "rank": 8, "every": 3}))
    assert need["kept_prompts"] == 4
    assert [need[f"kept_{part}_bytes"] for part in ("kv", "factor", "raw_key", "hidden")] == [
        *(4000, 320, 2000, 0)
    ]
    assert (need["needed_bytes"], need["placement"]) == (6000 + 6320, "device")
    for spec in ({"name": "naive"}, {"name": "salted"}, {"name": "prefix_only"}):
        need = memory(prices(), history(spec))
        assert need["kept_prompts"] == need["kept_kv_bytes"] == 0
        assert need["needed_bytes"] == 6000
    locality = memory(prices(), history({"name": "update_locality", "freeze": 0.5}))
    assert locality["kept_hidden_bytes"] == 400


def test_what_does_not_fit_is_offloaded_or_marked():
    loop, spec = replace(LOOP, recurrence=4), {"name": "stale"}
    rare = history(spec, loop, 12)
    need = memory(prices(loop), rare)
    assert (need["kept_prompts"], need["placement"]) == (16, "host")
    # The fifth round meets the first one's prompts: their entries come, and little goes back.
    terms = round_terms(prices(loop), rare[4], first=False, placement="host")
    assert terms["store"][0] == pytest.approx((4 * 1000 + 4 * 10) / 1e6)
    assert round_terms(prices(loop), rare[0], first=True, placement="host")["store"][0] == (
        pytest.approx(4 * 1000 / 1e6)
    )
    full = round_terms(prices(loop), rare[4], first=False)
    assert full["store"][0] == 0
    for there in (store(to_host_gb_s=None), store(host_bytes=9000), store(device_bytes=5999)):
        assert memory(prices(loop, store=there), rare)["placement"] == "does not fit"


def test_a_restart_fetches_what_lies_below_it():
    spec = {"name": "update_locality", "freeze": 0.5}
    first, second, *_ = history(spec)
    wanted = 4 * (1000 / 2 + 100) / 1e6  # half of the KV, and the hidden states at the boundary
    for rows, begun in ((first, True), (second, False)):
        terms = round_terms(prices(), rows, first=begun, placement="host")
        assert terms["store"][0] == pytest.approx(wanted)


def test_corrected_entries_go_back_with_their_raw_keys():
    corrected = row(2, {CORRECT: 4}, rank=8, ages=[1])
    seconds = round_terms(prices(), corrected, first=False, placement="host")["store"][0]
    assert seconds == pytest.approx(4 * (1500 + 1580) / 1e6)


def test_batch_1_is_every_rollout_alone():
    """The seed programme's savings are the prefill's share times what is not recomputed."""
    loop = replace(LOOP, rows=1, sharing="separate")
    alone = prices(loop, kind=SinglePrices, rollout=profile())
    assert alone.prefill_share(LAYERS) == pytest.approx(1.0 / 1.4)
    naive = policy_cost(alone, history({"name": "naive"}, replace(LOOP, prompts=8)))[0]
    assert naive["round_s"] == pytest.approx(8 * 1.4)
    assert (naive["host_s"], naive["learner_s"]) == pytest.approx((8 * 0.09, 0))
    free = {**TIMES, (FULL, 0, 0, (2,)): (1000.0, 0.0, True)}
    alone = prices(loop, kind=SinglePrices, rollout=profile(), restart=restart(times=free))
    spec = {"name": "update_locality", "freeze": 0.5}
    cost = policy_cost(alone, history(spec, replace(LOOP, prompts=8), 30))[-1]
    assert cost["prefill_saved"] == pytest.approx(29 / 60)
    assert cost["rollout_saved"] == pytest.approx(29 / 60 / 1.4)


def test_plans_survive_the_table():
    plans = {FULL: 1, BEHIND: 2, CORRECT: 3, Plan(2, LAYERS, 0): 4, Plan(0, 2, 0): 5}
    assert {plan: count for count, plan in plans_of(row(1, plans))} == plans


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"rollout": rollout(rows=4)}, "100/10, 8 rows.*rollout_throughput.*time_rollouts"),
        ({"rollout": rollout(generation=9)}, "generation 10, 8 rows and 2 candidates"),
        ({"latency": latency(status="skipped")}, "lora_latency.* time_lora"),
        ({"learner": learner(frozen_layers=3)}, "0 frozen layers in the table learner"),
        (
            {"learner": learner(form="independent")},
            "form shared_prompt .* p1.learner.*time_updates",
        ),
        ({"learner": learner(context=90)}, "context 100 and 0 frozen layers"),
        ({"restart": restart(context=90)}, "layers 0 to 4 of 4 from token 0 .* sweep_restart"),
        ({"restart": restart(depth=5)}, "at context 100 in the table restart_sweep"),
    ],
)
def test_a_missing_measurement_names_table_point_and_rule(tables, words):
    with pytest.raises(MissingMeasurement, match=words):
        policy_cost(prices(**tables), history({"name": "naive"}))


@pytest.mark.parametrize(
    ("plan", "rank", "boundaries", "words"),
    [
        (Plan(0, 4, 25, prefix_tokens=25), 0, (), "from token 25 after a shared prefix of 25"),
        (Plan.restart(4, 3), 0, (3,), "layers 3 to 4 of 4 .*keeping what enters layer 3"),
        (FULL, 16, (), "keeping factors of rank 16"),
        (CORRECT, 16, (), "correction of rank 16 from layer 0 up"),
    ],
)
def test_a_missing_plan_is_described(plan, rank, boundaries, words):
    with pytest.raises(MissingMeasurement, match=words):
        prices().fill(plan.fill(100, rank, 0, boundaries))


def test_a_missing_profile_names_its_rule():
    alone = prices(kind=SinglePrices, rollout=profile(mode="two_stage_overlap"))
    with pytest.raises(MissingMeasurement, match=r"rollout_profile.* profile_rollout"):
        policy_cost(alone, history({"name": "naive"}))


def test_prices_repeat_for_a_seed_and_differ_between_seeds():
    uneven = restart(spread=(0.8, 1.0, 1.3))
    work = FULL.fill(100, 0, 0, ())
    first, again, other = (prices(restart=uneven, seed=s).fill(work)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
