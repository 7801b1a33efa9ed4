"""The restart sweep: every plan that the cost model asks for is timed, with real partial work."""

import pytest
import torch

from ember.engine.engine import Engine
from ember.model.checkpoint import load_decoder
from ember.policies.build import build_policies
from ember.policies.execute import prompt_key
from ember.policies.plan import Fill, Plan
from ember.records.tables import read_table, write_table
from ember.studies.p1.restart.measure import Bench, operations, sweep_restart
from ember.studies.p1.restart.tables import RESTART_STORE, RESTART_SWEEP
from ember.studies.p1.workload.make import make_workload
from tests.tiny import declared

POLICIES = [
    {"name": "naive"},
    {"name": "prefix_only"},
    {"name": "update_locality", "freeze_layers": 3, "share_prefix": True},
    {"name": "stale"},
    {"name": "updatable_kv", "rank": 8, "every": 10, "share_prefix": True},
    {"name": "updatable_kv", "rank": 2, "every": 10, "freeze": 0.5},
]
POINTS = [{"context": 64, "generation": 8, "prefix": 16}]


def work(**given) -> Fill:
    whole = {"start_layer": 0, "stop_layer": 4, "start_token": 0, "prefix": 0, "correct": False}
    return Fill(**whole | {"corrected_from": 0, "rank": 0, "boundary": 0} | given)


@pytest.fixture
def model(tmp_path):
    sizes = {"intermediate_size": 64, "num_layers": 4, "vocab_size": 64}
    return declared(tmp_path / "tiny", **sizes)


def test_operations_are_the_policies_plans_and_restarts_at_fractions():
    found = operations(POINTS, 12, build_policies(POLICIES, 4), [0.0, 0.5, 1.0])
    after = {"start_token": 16, "prefix": 16}
    assert {one for _, one in found} == {
        work(),
        work(**after),
        work(boundary=3),
        work(**after, boundary=3),
        work(start_layer=3, boundary=3),
        work(start_layer=3, boundary=3, **after),
        work(start_token=63),
        work(rank=8),
        work(rank=8, **after),
        work(rank=2),
        work(start_token=63, correct=True, rank=8),
        work(start_token=63, correct=True, rank=2, corrected_from=2),
        work(start_layer=2, boundary=2),
        work(start_layer=4, boundary=4),
    }
    assert {context for context, _ in found} == {64}


def test_sweep_times_every_operation_and_gives_valid_tables(model, tmp_path):
    points = [*POINTS, {"context": 32, "generation": 8, "prefix": 16}]
    rows, store = sweep_restart(
        model=model,
        workload=make_workload(model=model, documents=2, tokens=64, seed=0),
        points=points,
        rounds=12,
        policies=POLICIES,
        layer_fractions=[0.0, 0.5, 1.0],
        warmup=1,
        repeats=3,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    table = read_table(write_table(tmp_path / "sweep.parquet", rows, RESTART_SWEEP), RESTART_SWEEP)
    assert len(table) == 2 * 14 * 3
    assert set(table["weights"]) == {"random"}
    for _, turn in table.groupby("repeat"):
        assert sorted(turn["place"]) == list(range(28)), "every plan once, and when"
    assert (table["prefill_ms"] > 0).all()
    assert table["correct"].equals(table["correction_ms"] > 0)
    lone = (table["start_token"] == table["context"] - 1) & (table["boundary"] == 0)
    assert table["logits"].equals(~lone), "a lone last token is left to the rows"
    kept = table[table["context"] == 64].groupby(["rank", "boundary"]).first()
    assert kept["kept_kv_bytes"].nunique() == 1
    assert kept.loc[(8, 0), "kept_factor_bytes"] == 64 * 8 * 2 * 4 * 4
    assert kept.loc[(8, 0), "kept_raw_key_bytes"] == kept.loc[(8, 0), "kept_kv_bytes"] / 2
    assert kept.loc[(0, 0), ["kept_factor_bytes", "kept_raw_key_bytes"]].sum() == 0
    assert kept.loc[(0, 3), "kept_hidden_bytes"] > kept.loc[(0, 0), "kept_hidden_bytes"]
    places = read_table(write_table(tmp_path / "store.parquet", store, RESTART_STORE))
    assert places["to_host_gb_s"].isna().all()
    assert (places["device_bytes"] == places["host_bytes"]).all()


def test_operations_do_the_work_they_are_named_for(model):
    engine = Engine(load_decoder(model), capacity=40, max_rows=1)
    found = operations([POINTS[0] | {"context": 32}], 12, build_policies(POLICIES, 4), [0.5])
    for _, one in found:
        bench = Bench(engine, one, list(range(32)), [*range(16), *range(40, 56)], seed=0)
        for _ in range(2):
            bench.run("cpu")
        stats = bench.prefill.runner.policy.stats[-1]
        plans = {one.plan(4)} | ({Plan.full(4)} if one.prefix else set())
        assert set(stats.plans) == plans
        assert stats.round == 3


def test_corrections_go_back_and_forth_without_drift(model):
    engine = Engine(load_decoder(model), capacity=40, max_rows=1)
    correct = work(start_token=31, correct=True, rank=8, corrected_from=1)
    prompt, first = list(range(32)), list(range(1, 33))
    bench = Bench(engine, correct, prompt, first, seed=0)
    kept = bench.prefill.runner.store[prompt_key(prompt)]
    before = [torch.stack(kept.cache.read(layer, 0, 31)).clone() for layer in range(4)]

    def moved() -> list[float]:
        kv = bench.prefill.runner.store[prompt_key(prompt)]
        now = [torch.stack(kv.cache.read(layer, 0, 31)) for layer in range(4)]
        return [float((a - b).abs().max()) for a, b in zip(now, before, strict=True)]

    bench.run("cpu")
    assert min(moved()[1:]) > 1e-5
    assert moved()[0] == 0, "layers that do not train are left alone"
    bench.run("cpu")
    assert max(moved()) < 1e-5
