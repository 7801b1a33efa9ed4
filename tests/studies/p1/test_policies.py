"""From simulated rounds and measured tables to the table of Figure 3."""

import json

import pytest

from ember.policies.cost import MissingMeasurement
from ember.records.errors import EmberError
from ember.records.tables import read_table, write_table
from ember.studies.p1.lora_latency.tables import LORA_LATENCY
from ember.studies.p1.policies.cost import model_cost
from ember.studies.p1.policies.measure import layers_of, simulate_policies
from ember.studies.p1.policies.tables import CUMULATIVE_COST, POLICY_ROUNDS
from ember.studies.p1.prefix.tables import PREFIX_SWEEP
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE
from ember.studies.p1.restart.tables import RESTART_SWEEP

POLICIES = [
    {"name": "naive"},
    {"name": "prefix_only"},
    {"name": "update_locality", "freeze": 0.5},
    {"name": "periodic_refresh", "every": 10, "freeze": 0.5},
    {"name": "updatable_kv", "rank": 8, "every": 10},
]
ROUNDS = {
    "rounds": 30,
    "prompts": 10,
    "candidates": 8,
    "bootstrap": 100,
    "points": [{"context": 100, "generation": 10, "prefix": 50}],
}
ABOUT = {
    "device": "cpu",
    "dtype": "float32",
    "model": "m",
    "weights": "random",
    "evidence": "measured",
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 36}))
    return folder


def profile():
    times = {"prefill_ms": 1000.0, "decode_ms": 1000.0, "sampling_ms": 0.0, "transfer_ms": 0.0}
    return [
        {
            "point": "single_100_10",
            "mode": "single",
            "context": 100,
            "generation": 10,
            "batch": 1,
            "repeat": repeat,
            **times,
            "total_ms": 2000.0,
            "tokens_per_s": 5.0,
            "status": "ok",
            "reason": None,
            **ABOUT,
        }
        for repeat in range(3)
    ]


def prefix():
    rows = []
    for document in range(3):
        for cached, ms in ((True, 500.0), (False, 1000.0)):
            rows.append(
                {
                    "prompt_tokens": 100,
                    "prefix_tokens": 50,
                    "document": document,
                    "shard": 0,
                    "order": 2 * document + cached,
                    "cached": cached,
                    "reused_tokens": 50 * cached,
                    "prefill_ms": ms,
                    "lookup_ms": 0.0,
                    "store_ms": 0.0,
                    "first_token": 1,
                    "first": cached,
                    "tokens_equal": True if cached else None,
                    "max_logit_diff": 0.0 if cached else None,
                    **ABOUT,
                }
            )
    return rows


def restart(**change):
    times = {
        ("recompute", 0, 0, 0): 800.0,
        ("recompute", 18, 0, 0): 400.0,
        ("recompute", 0, 99, 0): 8.0,
        ("recompute", 0, 0, 8): 880.0,
        ("correct", 0, 0, 8): 40.0,
    }
    return [
        {
            "context": 100,
            "num_layers": 36,
            "action": action,
            "start_layer": layer,
            "start_token": token,
            "rank": rank,
            "repeat": repeat,
            "ms": ms,
            **ABOUT,
        }
        | change
        for (action, layer, token, rank), ms in times.items()
        for repeat in range(3)
    ]


def test_layers_come_from_the_models_config(model, tmp_path):
    assert layers_of(model) == 36
    with pytest.raises(EmberError, match=r"config\.json is missing"):
        layers_of(tmp_path / "nothing")


def test_rounds_reproduce_the_anchors_in_the_table(model, tmp_path):
    rows = simulate_policies(model=model, policies=POLICIES, rounds=ROUNDS)
    table = read_table(write_table(tmp_path / "rounds.parquet", rows, POLICY_ROUNDS))
    ratios = table.groupby(["sharing", "policy"])["recompute_ratio"].mean()
    for sharing in ("independent", "shared"):
        assert f"{ratios[sharing, 'naive']:.6f}" == "1.000000"
        assert f"{ratios[sharing, 'locality_18']:.6f}" == "0.516667"
        assert f"{ratios[sharing, 'locality_18_refresh_10']:.6f}" == "0.566667"
    prompts = table.groupby("sharing")["prompts"].unique()
    assert (list(prompts["independent"]), list(prompts["shared"])) == ([80], [10])
    assert set(table["evidence"]) == {"modelled"}


def latency():
    """Replacements that take no time, so that savings have a closed form."""
    return [
        {
            "implementation": "ember",
            "keep": "device",
            "operation": "replace",
            "phase": "steady",
            "repeat": repeat,
            "ms": 0.0,
            "matrices": 144,
            "passes": 144,
            "rank": 8,
            "bytes": 8,
            "copy_gb_s": 1.0,
            "limit_ms": 1.0,
            "status": "ok",
            "reason": None,
            **ABOUT,
        }
        for repeat in range(3)
    ]


def test_savings_follow_from_ratios_and_shares(model, tmp_path):
    """With prefill half of a rollout, savings are half of what the recompute ratios save."""
    tables = {
        "profile": (profile(), ROLLOUT_PROFILE),
        "prefix": (prefix(), PREFIX_SWEEP),
        "restart": (restart(), RESTART_SWEEP),
        "latency": (latency(), LORA_LATENCY),
        "policy_rounds": (
            simulate_policies(model=model, policies=POLICIES, rounds=ROUNDS),
            POLICY_ROUNDS,
        ),
    }
    paths = {
        name: write_table(tmp_path / f"{name}.parquet", rows, schema)
        for name, (rows, schema) in tables.items()
    }
    rows = model_cost(**paths, rounds=ROUNDS, seed=0)
    table = read_table(write_table(tmp_path / "cost.parquet", rows, CUMULATIVE_COST))
    last = table[table["round"] == 30].set_index(["sharing", "policy"])["savings_vs_naive"]
    saved = {
        "naive": 0.0,
        "prefix_only": 0.5 * (1 - 1 / 80),
        "locality_18": 1 - 31 / 60,
        "locality_18_refresh_10": 1 - 17 / 30,
        "updatable_r8_k10": 1 - (4 * 1.1 + 26 * (0.01 + 0.05)) / 30,
    }
    for policy, prefill in saved.items():
        assert last["independent", policy] == pytest.approx(prefill / 2)
    # Shared: one prefill for eight candidates, so prefill is 1/9 of the cost.
    assert last["shared", "locality_18"] == pytest.approx((1 - 31 / 60) / 9)
    assert last["shared", "prefix_only"] == pytest.approx(0.5 * (1 - 1 / 10) / 9)
    assert set(table["weights"]) == {"random"}
    assert set(table["evidence"]) == {"modelled"}


def test_tables_of_different_machines_are_not_mixed(model):
    with pytest.raises(MissingMeasurement, match="measured on different things"):
        model_cost(
            profile=profile(),
            prefix=prefix(),
            restart=restart(device="cuda"),
            latency=latency(),
            policy_rounds=simulate_policies(model=model, policies=POLICIES, rounds=ROUNDS),
            rounds=ROUNDS,
            seed=0,
        )


def test_a_policy_without_measurements_is_an_error(model):
    policies = [*POLICIES, {"name": "update_locality", "freeze": 0.25}]
    with pytest.raises(MissingMeasurement, match="layer 9 of 36"):
        model_cost(
            profile=profile(),
            prefix=prefix(),
            restart=restart(),
            latency=latency(),
            policy_rounds=simulate_policies(model=model, policies=policies, rounds=ROUNDS),
            rounds=ROUNDS,
            seed=0,
        )
