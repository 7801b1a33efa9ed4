"""The restart sweep: every operation the cost model asks for is timed, with real partial work."""

import pytest

from ember.model.checkpoint import load_decoder
from ember.policies.build import build_policies
from ember.records.tables import read_table, write_table
from ember.studies.p1.restart.measure import Bench, Operation, operations, sweep_restart
from ember.studies.p1.restart.tables import RESTART_SWEEP
from ember.studies.p1.workload.make import make_workload
from tests.tiny import declared

POLICIES = [
    {"name": "naive"},
    {"name": "update_locality", "freeze_layers": 3},
    {"name": "periodic_refresh", "every": 10},
    {"name": "updatable_kv", "rank": 8, "every": 10},
    {"name": "updatable_kv", "rank": 2, "every": 10, "freeze": 0.5},
]


@pytest.fixture
def model(tmp_path):
    sizes = {"intermediate_size": 64, "num_layers": 4, "vocab_size": 64}
    return declared(tmp_path / "tiny", **sizes)


def test_operations_cover_fractions_policies_and_ranks():
    found = operations([64], [0.0, 0.5, 1.0], build_policies(POLICIES, 4))
    assert set(found) == {
        *(Operation(64, "recompute", layer, 0, 0) for layer in (0, 2, 3, 4)),
        Operation(64, "recompute", 0, 63, 0),
        Operation(64, "recompute", 0, 0, 8),
        Operation(64, "recompute", 0, 0, 2),
        Operation(64, "correct", 0, 0, 8),
        Operation(64, "correct", 2, 0, 2),
    }


def test_sweep_times_every_operation_and_gives_a_valid_table(model, tmp_path):
    rows = sweep_restart(
        model=model,
        workload=make_workload(model=model, documents=2, tokens=64, seed=0),
        contexts=[32, 64],
        policies=POLICIES,
        layer_fractions=[0.0, 0.5, 1.0],
        warmup=1,
        repeats=3,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    path = write_table(tmp_path / "sweep.parquet", rows, RESTART_SWEEP)
    table = read_table(path, RESTART_SWEEP)
    assert len(table) == 2 * 9 * 3
    assert (table["ms"] > 0).all()
    assert set(table["weights"]) == {"random"}
    assert sorted(set(table["repeat"])) == [0, 1, 2]


def test_operations_do_the_work_they_are_named_for(model):
    decoder = load_decoder(model)
    todo = operations([32], [0.0, 0.5, 1.0], build_policies(POLICIES, 4))
    bench = Bench(decoder, list(range(32)), todo, seed=0)
    ran = []
    for index, layer in enumerate(decoder.layers):
        layer.register_forward_hook(
            lambda _, args, out, index=index: ran.append((index, out.shape[1]))
        )
    for operation in todo:
        ran.clear()
        bench.run(operation)
        if operation.action == "correct":
            assert ran == []
            continue
        tokens = 32 - operation.start_token
        # Of the last layer only the last token is wanted.
        expected = [tokens, tokens, tokens, 1][operation.start_layer :]
        assert [count for _, count in ran] == expected
        assert all(bench.plain.cache.length(layer) == 32 for layer in range(4))


def test_corrections_go_back_and_forth_without_drift(model):
    decoder = load_decoder(model)
    operation = Operation(32, "correct", 0, 0, 8)
    bench = Bench(decoder, list(range(32)), [operation], seed=0)
    kv = bench.corrected[8].cache.kv
    before = kv.clone()
    bench.run(operation)
    assert (kv - before).abs().max() > 1e-5
    bench.run(operation)
    assert (kv - before).abs().max() < 1e-5
