"""The cost model: totals against sums done by hand, intervals, errors for missing measurements."""

import numpy as np
import pandas as pd
import pytest

from ember.measure.statistics import interval
from ember.policies.cost import (
    Measured,
    MissingMeasurement,
    Point,
    Prices,
    naive_cost,
    plans_of,
    policy_cost,
)
from ember.policies.plan import Plan

LAYERS, POINT = 4, Point(100, 10, 50)


def profile(prefill=(1000.0,), batch=1, **change):
    rows = [
        {
            "mode": "single",
            "status": "ok",
            "context": 100,
            "generation": 10,
            "batch": batch,
            "prefill_ms": ms,
            "decode_ms": 200.0,
            "sampling_ms": 20.0,
            "transfer_ms": 2.0,
        }
        | change
        for ms in prefill
    ]
    return pd.DataFrame(rows)


def prefix(cached=(500.0, 600.0, 700.0)):
    rows = []
    for document, ms in enumerate(cached):
        common = {"prompt_tokens": 100, "prefix_tokens": 50, "document": document}
        rows.append(common | {"cached": True, "reused_tokens": 50, "prefill_ms": ms})
        rows.append(common | {"cached": False, "reused_tokens": 0, "prefill_ms": 1000.0})
    return pd.DataFrame(rows)


def restart():
    times = {
        ("recompute", 0, 0, 0): 800.0,
        ("recompute", 2, 0, 0): 400.0,
        ("recompute", 4, 0, 0): 8.0,
        ("recompute", 0, 99, 0): 16.0,
        ("recompute", 0, 0, 8): 880.0,
        ("correct", 0, 0, 8): 40.0,
    }
    return pd.DataFrame(
        [
            {
                "context": 100,
                "num_layers": LAYERS,
                "action": action,
                "start_layer": layer,
                "start_token": token,
                "rank": rank,
                "repeat": repeat,
                "ms": ms * (1 + repeat),  # a machine that slows down: ratios stay
            }
            for (action, layer, token, rank), ms in times.items()
            for repeat in range(3)
        ]
    )


def latency(ms=0.0, **change):
    steady = {"implementation": "ember", "keep": "device", "operation": "replace"}
    steady |= {"phase": "steady", "status": "ok", "ms": ms}
    others = [{"keep": "host"}, {"operation": "apply"}, {"implementation": "peft"}]
    return pd.DataFrame([steady | change] + [steady | {"ms": 9e9} | other for other in others])


def prices(resamples=50, point=POINT, **tables):
    measured = {"profile": profile(), "prefix": prefix(), "restart": restart()}
    tables = measured | {"latency": latency()} | tables
    return Prices(Measured(**tables, num_layers=LAYERS), point, resamples, seed=0)


def row(round, plans, rank=0, frozen=0):
    """A row of POLICY_ROUNDS with {plan: prefills}."""
    return {
        "round": round,
        "num_layers": LAYERS,
        "rank": rank,
        "frozen_layers": frozen,
        "prompts": sum(plans.values()),
        "plan_prefills": list(plans.values()),
        "plan_start_layer": [plan.start_layer for plan in plans],
        "plan_stop_layer": [plan.stop_layer for plan in plans],
        "plan_start_token": [plan.start_token for plan in plans],
        "plan_prefix": [plan.prefix_tokens for plan in plans],
        "plan_correct": [int(plan.correct) for plan in plans],
    }


FULL = Plan.full(LAYERS)
LAST = Plan.last_tokens(LAYERS, 100)
CORRECT = Plan.last_tokens(LAYERS, 100, correct=True)


@pytest.mark.parametrize(
    ("plan", "rank", "seconds"),
    [
        (FULL, 0, 1.0),
        (FULL, 8, 1.1),  # keeping factors
        (Plan.restart(LAYERS, 2), 0, 0.5),
        (Plan.restart(LAYERS, 4), 0, 0.01),
        (LAST, 0, 0.02),
        (CORRECT, 8, 0.02),
        (Plan(0, LAYERS, 50, prefix_tokens=50), 0, 0.6),
    ],
)
def test_a_plan_costs_the_profiles_prefill_times_its_measured_ratio(plan, rank, seconds):
    assert prices().prefill(plan, rank)[0] == pytest.approx(seconds)


def test_a_round_is_the_sum_of_its_parts():
    rounds = [row(1, {FULL: 4}, rank=8), row(2, {CORRECT: 4}, rank=8)]
    first, second = policy_cost(prices(), rounds, rollouts=12)
    assert first["prefill_s"] == pytest.approx(4 * 1.1)
    assert (first["decode_s"], first["sampling_s"]) == pytest.approx((12 * 0.2, 12 * 0.02))
    assert first["transfer_s"] == pytest.approx(12 * 0.002)
    assert second["correction_s"] == pytest.approx(4 * 0.05)
    assert second["prefill_s"] == pytest.approx(4 * 0.02)
    parts = ("prefill_s", "decode_s", "sampling_s", "transfer_s", "correction_s")
    for cost in (first, second):
        assert cost["round_s"] == pytest.approx(sum(cost[part] for part in parts))
    assert second["cumulative_s"] == pytest.approx(first["round_s"] + second["round_s"])
    naive = 2 * (4 * 1.0 + 12 * 0.222)
    assert second["savings_vs_naive"] == pytest.approx(1 - second["cumulative_s"] / naive)
    assert first["savings_vs_naive"] < 0  # keeping factors costs before it pays


def test_every_round_but_the_first_replaces_the_adapter():
    rounds = [row(n, {FULL: 1}) for n in (1, 2, 3)]
    plain = policy_cost(prices(), rounds, rollouts=2)
    found = policy_cost(prices(latency=latency(250.0)), rounds, rollouts=2)
    assert [cost["update_s"] for cost in found] == [0.0, 0.25, 0.25]
    assert found[2]["cumulative_s"] == pytest.approx(plain[2]["cumulative_s"] + 0.5)
    assert found[2]["savings_vs_naive"] == 0, "naive replaces it too"


def test_naive_saves_exactly_nothing_in_every_resample():
    rounds = [row(n, {FULL: 3}) for n in (1, 2, 3)]
    tables = prices(profile=profile([900.0, 1000.0, 1300.0]))
    for cost in policy_cost(tables, rounds, rollouts=6):
        assert cost["savings_vs_naive"] == cost["savings_low"] == cost["savings_high"] == 0
    assert np.allclose(np.diff(naive_cost(tables, rounds, 6), axis=0), 3 + 6 * 0.222, atol=1)


def test_intervals_cover_the_estimate_and_shrink_with_agreement():
    def spread(prefill):
        cost = policy_cost(prices(500, profile=profile(prefill)), [row(1, {FULL: 1})], rollouts=1)
        assert (
            cost[0]["cumulative_low_s"] <= cost[0]["cumulative_s"] <= cost[0]["cumulative_high_s"]
        )
        return cost[0]["cumulative_high_s"] - cost[0]["cumulative_low_s"]

    assert spread([800.0, 1000.0, 1300.0]) > spread([990.0, 1000.0, 1010.0]) > 0
    assert spread([1000.0] * 3) == pytest.approx(0)
    assert interval(np.array([2.0, 1.0, 3.0]))[0] <= 2.0


def test_prices_repeat_for_a_seed():
    plan = Plan(0, LAYERS, 50, prefix_tokens=50)
    assert (prices().prefill(plan) == prices().prefill(plan)).all()


def test_a_batch_is_priced_by_the_sequence():
    assert prices(profile=profile(batch=4)).phases["prefill"][0] == pytest.approx(0.25)


def test_plans_survive_the_table():
    plans = {FULL: 1, Plan(0, LAYERS, 50, prefix_tokens=50): 2, CORRECT: 3, Plan(2, LAYERS, 0): 4}
    assert {plan: count for count, plan in plans_of(row(1, plans), LAYERS)} == plans


@pytest.mark.parametrize(
    ("tables", "plan", "words"),
    [
        (
            {"profile": profile(mode="two_stage_overlap")},
            FULL,
            "rollout_profile.* profile_rollout",
        ),
        ({"profile": profile(status="skipped")}, FULL, "context 100 and generation 10"),
        ({"latency": latency(status="skipped")}, FULL, "lora_latency.* time_lora"),
        ({"prefix": prefix()[:0]}, Plan(0, 4, 50, prefix_tokens=50), "prefix_sweep.*sweep_prefix"),
        ({}, Plan(0, 4, 25, prefix_tokens=25), "shared prefix of 25"),
        ({}, Plan.restart(4, 3), "layer 3 of 4 .* restart_sweep.* sweep_restart"),
        ({}, Plan(2, 4, 50, prefix_tokens=50), "layer 2 of 4 and token 50"),
        ({"restart": restart()[3:]}, LAST, "layer 0 of 4 and token 0"),
        ({}, Plan(0, 3, 0), "stop below the top"),
    ],
)
def test_a_missing_measurement_names_the_table_and_the_rule(tables, plan, words):
    with pytest.raises(MissingMeasurement, match=words):
        prices(**tables).prefill(plan)


def test_a_missing_correction_names_the_rank():
    with pytest.raises(MissingMeasurement, match="correction of rank 16 from layer 0 up"):
        prices().correction(0, 16)
