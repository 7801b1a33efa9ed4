"""From simulated rounds and measured tables to the tables and the drawing of Figure 3."""

import json

import pandas as pd
import pytest

from ember.policies.cost import MissingMeasurement
from ember.records.errors import EmberError
from ember.records.tables import read_table, write_table
from ember.studies.p1.learner.tables import LEARNER
from ember.studies.p1.lora_latency.tables import LORA_LATENCY
from ember.studies.p1.policies.cost import loops, model_batch1, model_cost
from ember.studies.p1.policies.figure import draw
from ember.studies.p1.policies.measure import layers_of, simulate_policies
from ember.studies.p1.policies.summary import summarise_policies
from ember.studies.p1.policies.tables import (
    CUMULATIVE_COST,
    POLICY_BATCH1,
    POLICY_MEMORY,
    POLICY_ROUNDS,
    POLICY_SUMMARY,
)
from ember.studies.p1.restart.tables import RESTART_STORE, RESTART_SWEEP
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT
from tests.policies import prices

POLICIES = [
    {"name": "naive"},
    {"name": "naive", "freeze": 0.5},
    {"name": "salted"},
    {"name": "prefix_only"},
    {"name": "update_locality", "freeze": 0.5},
    {"name": "updatable_kv", "rank": 8, "every": 3},
    {"name": "stale"},
]
ROUNDS = {
    "rounds": 12,
    "prompts": 4,
    "candidates": 2,
    "rows": [8],
    "independent_rows": 8,
    "learner": ["shared_prompt", "independent"],
    "recurrence": [1, 4],
    "bootstrap": 100,
    "points": [{"context": 100, "generation": 10, "prefix": 50}],
}
SCHEMAS = {
    "rollout": ROLLOUT_THROUGHPUT,
    "restart": RESTART_SWEEP,
    "store": RESTART_STORE,
    "latency": LORA_LATENCY,
    "learner": LEARNER,
}


def make_model(folder, layers: int):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    return folder


@pytest.fixture
def rounds(tmp_path):
    model = make_model(tmp_path / "model", prices.LAYERS)
    return simulate_policies(model=model, policies=POLICIES, rounds=ROUNDS)


def measured(**given) -> dict:
    return {name: given.get(name, getattr(prices, name)()) for name in SCHEMAS}


def modelled(rounds, **given) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = model_cost(**measured(**given), policy_rounds=rounds, rounds=ROUNDS, seed=0)
    return tuple(map(pd.DataFrame, tables))


def test_layers_come_from_the_models_config(tmp_path):
    assert layers_of(make_model(tmp_path / "model", 36)) == 36
    with pytest.raises(EmberError, match=r"config\.json is missing"):
        layers_of(tmp_path / "nothing")


def test_rounds_reproduce_the_anchors_in_the_table(tmp_path):
    """P1-5.3: 36 layers, 30 rounds, half of the layers frozen."""
    rows = simulate_policies(
        model=make_model(tmp_path / "model", 36), policies=POLICIES, rounds=ROUNDS | {"rounds": 30}
    )
    table = read_table(write_table(tmp_path / "rounds.parquet", rows, POLICY_ROUNDS))
    ratios = table.groupby(["sharing", "recurrence", "policy"])["recompute_ratio"].mean()
    for sharing in ("shared", "separate"):
        assert f"{ratios[sharing, 1, 'naive']:.6f}" == "1.000000"
        assert f"{ratios[sharing, 1, 'locality_18']:.6f}" == "0.516667"
    prompts = table.groupby("sharing")["prompts"].unique()
    assert {name: list(n) for name, n in prompts.items()} == {
        "shared": [4],
        "independent": [8],
        "separate": [8],
    }
    last = table[table["round"] == 30].set_index(["sharing", "recurrence", "policy"])
    assert list(last.loc[("shared", 1, "stale"), "ages"]) == [29], "the age of each reuse is there"
    assert list(last.loc[("shared", 1, "stale"), "age_prefills"]) == [4]
    assert set(table["evidence"]) == {"modelled"}


def test_operating_points_differ_from_the_first_in_one_thing():
    found = list(loops(ROUNDS | {"rows": [8, 4], "independent_rows": 2}))
    assert [(one.rows, one.sharing, one.learner, one.recurrence) for one in found] == [
        (8, "shared", "shared_prompt", 1),
        (4, "shared", "shared_prompt", 1),
        (2, "independent", "shared_prompt", 1),
        (8, "shared", "independent", 1),
        (8, "shared", "shared_prompt", 4),
    ]


def test_tables_hold_every_policy_at_every_operating_point(rounds, tmp_path):
    paths = {
        name: write_table(tmp_path / f"{name}.parquet", table.to_dict("records"), SCHEMAS[name])
        for name, table in measured().items()
    }
    paths["policy_rounds"] = write_table(tmp_path / "rounds.parquet", rounds, POLICY_ROUNDS)
    cost, memory = model_cost(**paths, rounds=ROUNDS, seed=0)
    cost = read_table(write_table(tmp_path / "cost.parquet", cost, CUMULATIVE_COST))
    memory = read_table(write_table(tmp_path / "memory.parquet", memory, POLICY_MEMORY))
    assert len(cost) == 12 * len(memory) == 12 * 4 * len(POLICIES)
    assert set(cost["evidence"]) == {"modelled"}
    keys = ["sharing", "learner", "recurrence", "policy"]
    last = cost[cost["round"] == 12].set_index(keys).sort_index()
    usual = last.loc[("shared", "shared_prompt", 1)]
    # By hand: 12 rounds of 4 s of prefill, 1.5 s of decoding, 2.4 s of learning, 11 switches.
    naive, prefix = 12 * (4 + 1.5 + 2.4) + 11 * 0.25, 12 * (1 + 3 * 0.6)
    assert usual.loc["naive", "cumulative_s"] == pytest.approx(naive)
    assert usual.loc["naive", "round_saved"] == 0
    assert usual.loc["prefix_only", "prefill_saved"] == pytest.approx(1 - prefix / 48)
    assert usual.loc["prefix_only", "rollout_saved"] == pytest.approx((48 - prefix) / 12 / 5.5)
    assert usual.loc["prefix_only", "round_saved"] == pytest.approx((48 - prefix) / naive)
    assert usual.loc["salted", "cumulative_s"] == usual.loc["prefix_only", "cumulative_s"]
    frozen = 12 * 480 / 400 * 0.8
    assert usual.loc["naive_freeze_2", "round_saved"] == pytest.approx(frozen / naive)
    heavier = last.loc[("shared", "independent", 1)]
    assert (heavier["prefill_saved"] == usual["prefill_saved"]).all()
    assert heavier.loc["stale", "round_saved"] < usual.loc["stale", "round_saved"]
    rare = last.loc[("shared", "shared_prompt", 4)]
    assert rare.loc["stale", "round_saved"] < usual.loc["stale", "round_saved"]

    summary = summarise_policies(paths["policy_rounds"], cost, memory)
    summary = read_table(write_table(tmp_path / "summary.parquet", summary, POLICY_SUMMARY))
    one = summary.set_index(keys).loc[("shared", "shared_prompt", 1, "updatable_r8_k3")]
    assert (one["hits"], one["misses"], one["oldest_reuse"]) == (4 * 7, 4 * 5, 2)
    assert one["kept_gb"] == pytest.approx(4 * 1580 / 1e9)
    parts = [name for name in POLICY_SUMMARY.names if name.endswith("_s") and name != "total_s"]
    assert one[parts].sum() == pytest.approx(one["total_s"])


def test_the_seed_programmes_accounting_stays_beside_it(rounds, tmp_path):
    rows = model_batch1(
        profile=prices.profile(),
        restart=prices.restart(),
        latency=prices.latency(ms=0.0),
        policy_rounds=rounds,
        rounds=ROUNDS,
        seed=0,
    )
    table = read_table(write_table(tmp_path / "batch1.parquet", rows, POLICY_BATCH1))
    assert len(table) == 2 * len(POLICIES)
    table = table.set_index(["sharing", "policy"])
    alone = table.loc["separate"]
    assert alone.loc["naive", "total_s"] == pytest.approx(12 * 8 * 1.4)
    assert alone.loc["prefix_only", "rollout_saved"] == pytest.approx(0.4 * 7 / 8 / 1.4)
    assert set(table["prefill_share"].round(9)) == {round(1 / 1.4, 9)}
    shared = table.loc["shared"]
    assert shared.loc["naive", "total_s"] == pytest.approx(12 * (4 * 1.0 + 8 * 0.4))


def test_figure_3_shows_savings_seconds_and_memory(rounds):
    cost, memory = modelled(rounds)
    figure, caption = draw(cost, memory, ROUNDS, "tiny")
    savings, steady, room = figure.axes
    labels = [label.get_text() for label in steady.get_yticklabels()]
    assert labels[2] == "Salted = Prefix only", "policies that coincide share a row"
    assert len(savings.lines) == len(labels), "a line for each but Naive, and zero"
    stacked = max(bar.get_x() + bar.get_width() for bar in steady.patches)
    mean = cost[cost["round"] > 1].groupby("policy")["round_s"].mean()
    assert stacked == pytest.approx(mean.max(), rel=0.2)
    assert all(bar.get_facecolor() == (1, 1, 1, 1) for bar in steady.patches), "modelled: hollow"
    usual = memory[(memory["sharing"] == "shared") & (memory["recurrence"] == 1)]
    longest = max(bar.get_x() + bar.get_width() for bar in room.patches)
    assert longest == pytest.approx(usual["needed_bytes"].max() / 1e9)
    assert "(modelled)" in caption
    assert "has n = 1" in caption
    assert "Naive, 2/4 layers frozen alone saves" in caption
    assert "- 100/10, Prefix only: prefill 30.0 [30.0, 30.0], rollout 21.8 [21.8, 21.8]" in caption
    assert "All of them fit the device." in caption
    few = prices.store(device_bytes=7000, to_host_gb_s=None)
    _, caption = draw(*modelled(rounds, store=few), ROUNDS, "tiny")
    assert "not on the device: Update locality, 2/4 layers frozen (does not fit)" in caption


def test_tables_of_different_machines_are_not_mixed(rounds):
    other = prices.restart().assign(device="cuda")
    with pytest.raises(MissingMeasurement, match=r"different things \(rollout_throughput: .*cuda"):
        modelled(rounds, restart=other)


def test_a_policy_without_measurements_is_an_error(tmp_path):
    policies = [*POLICIES, {"name": "update_locality", "freeze": 0.25}]
    model = make_model(tmp_path / "model", prices.LAYERS)
    rounds = simulate_policies(model=model, policies=policies, rounds=ROUNDS)
    with pytest.raises(MissingMeasurement, match=r"keeping what enters layer 1 .*sweep_restart"):
        modelled(rounds)
