"""The parity table: what agrees says so, what does not is reported with its size."""

import sys

import pytest
import torch

from ember.model.architecture import Architecture
from ember.model.decoder import OffsetRMSNorm
from ember.model.presets import PRESETS
from ember.model.rope import BadArchitecture
from ember.records.tables import read_rows, read_table, write_table
from ember.studies.p1.architectures.measure import check_architectures, shrink
from ember.studies.p1.architectures.tables import ARCHITECTURES

SETTINGS = {"tokens": 20, "new_tokens": 6, "draws": 1, "tolerance": 1e-4, "seed": 3}
FEATURES = (
    "model_type",
    "norm",
    "norm_eps",
    "post_norms",
    "parallel_residual",
    "qk_norm",
    "rope_theta",
    "rope_fraction",
    "rope_local_theta",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "gated_mlp",
    "activation",
    "scaled_embedding",
    "tie_embeddings",
)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_small_models_have_the_features_of_the_large(preset):
    large, small = Architecture.make(preset), shrink(preset, 26)
    for name in FEATURES:
        assert getattr(small, name) == getattr(large, name)
    assert (small.rope_scaling is None) == (large.rope_scaling is None)
    assert (small.groups == 1) == (large.groups == 1)
    kinds = {small.window(layer) is None for layer in range(small.num_layers)}
    assert kinds == {large.window(layer) is None for layer in range(large.num_layers)}
    assert small.parameter_count() < 1e6


def test_gemma_and_neox_agree_with_transformers(tmp_path):
    rows = check_architectures(presets=["gemma-3-270m", "pythia-160m"], **SETTINGS)
    table = read_table(write_table(tmp_path / "a.parquet", rows, ARCHITECTURES), ARCHITECTURES)
    assert list(table["agrees"]) == [True, True]
    assert list(table["tokens_equal"]) == [6, 6]
    assert (table["logit_std"] > 0.1).all()
    assert (table["logits_steps"] > 0).all()  # other operations, so not equal to the last bit


def test_a_difference_is_reported(monkeypatch, tmp_path):
    """Gemma's norm without its offset is another model; tokens may or may not show it."""

    def wrong(self, x):
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight + 0.99, self.eps)

    monkeypatch.setattr(OffsetRMSNorm, "forward", wrong)
    [row] = check_architectures(presets=["gemma-3-270m"], **SETTINGS)
    write_table(tmp_path / "a.parquet", [row], ARCHITECTURES)
    assert row["agrees"] is False
    assert row["logits_whole"] > SETTINGS["tolerance"]
    assert row["status"] == "ok"


def test_without_transformers_rows_are_skipped(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    rows = check_architectures(presets=["qwen3-0.6b", "pythia-160m"], **SETTINGS)
    write_table(tmp_path / "a.parquet", rows, ARCHITECTURES)
    assert [row["status"] for row in rows] == ["skipped", "skipped"]
    assert "transformers" in rows[0]["reason"]


def test_unknown_presets_are_named():
    with pytest.raises(BadArchitecture, match="unknown preset 'qwen9'"):
        check_architectures(presets=["qwen9"], **SETTINGS)


def test_nan_never_agrees(monkeypatch, tmp_path):
    def broken(self, x):
        return x * torch.nan

    monkeypatch.setattr(OffsetRMSNorm, "forward", broken)
    rows = check_architectures(presets=["gemma-3-270m"], **SETTINGS)
    [row] = read_rows(write_table(tmp_path / "a.parquet", rows, ARCHITECTURES), ARCHITECTURES)
    assert row["agrees"] is False
    assert row["logits_whole"] == sys.float_info.max
