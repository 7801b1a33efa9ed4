"""Weight decay by itself: which way of updating lets it reach the 4-bit weights."""

import pytest
import torch

from ember.records.tables import write_table
from ember.studies.lowbit.arms.measure import _decayed
from ember.studies.lowbit.arms.summary import summarise_arms
from ember.studies.lowbit.arms.tables import ARM_RUNS, DECAY_RUNS, LOWBIT_ARMS

REACHES = {"master_float32": 1, "master_bfloat16": 0, "stochastic": 1, "nearest": 0, "feedback": 0}
ABOUT = {"device": "cpu", "device_name": "a CPU", "dtype": "float32", "model": "small"}
ABOUT |= {"weights": "trained", "evidence": "measured"}


def decayed(arm: str, number: int) -> dict:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    how = {"rate": 1e-3, "steps": 200, "headroom": 1.2, "number": number}
    return _decayed(weight, {"arm": arm, "states": "float32"}, **how)


@pytest.mark.parametrize("arm", REACHES)
def test_decay_reaches_the_weights_or_vanishes(arm):
    found = decayed(arm, 1)
    assert found["decayed"] / found["wanted"] == pytest.approx(REACHES[arm], abs=0.1)
    assert (found["changed"] > 0.1) == (arm == "stochastic")
    if arm.startswith("master"):  # in bfloat16 a step of 0.1 % is rounded away
        assert found["master_decayed"] / found["wanted"] == pytest.approx(REACHES[arm], abs=0.1)


def test_the_table_has_its_interval_over_seeds(tmp_path):
    run = {"train_loss": None, "val_loss": 2.0, "changed": 0.1, "weight_bytes": 0.6}
    run |= {"state_bytes": 8.0, "val_tokens": 64}
    runs, decays = [], []
    for seed in (1, 2, 3):
        variant = {"arm": "stochastic", "states": "float32", "seed": seed}
        decays.append(variant | decayed("stochastic", seed) | ABOUT)
        runs += [variant | run | {"step": step} | ABOUT for step in (0, 4)]
    write_table(tmp_path / "runs.parquet", runs, ARM_RUNS)
    write_table(tmp_path / "decays.parquet", decays, DECAY_RUNS)
    [row] = summarise_arms([runs], [decays])
    write_table(tmp_path / "arms.parquet", [row], LOWBIT_ARMS)
    assert 0.8 < row["decay_low"] < row["decay"] < row["decay_high"] < 1.2
    assert row["decay_master"] is None
