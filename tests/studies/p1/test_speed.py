"""Ember and Transformers side by side: same tokens, both timed, a missing peer is a skipped row."""

import json
import sys

import pytest
import torch

from ember.model.architecture import SIZES, Architecture
from ember.model.checkpoint import load_decoder
from ember.model.families import FAMILIES
from ember.model.reference import load_peer
from ember.records.tables import write_table
from ember.studies.p1.speed.measure import compare_engines
from ember.studies.p1.speed.tables import ENGINE_SPEED
from ember.studies.p1.workload.make import make_workload

SETTINGS = {"prompt_tokens": 12, "new_tokens": 6, "repeats": 2, "warmup": 1}
RUNTIME = {"device": "cpu", "dtype": "float32", "seed": 0}


def compare(model):
    workload = make_workload(model=model, documents=2, tokens=12, seed=0)
    return compare_engines(model=model, workload=workload, **SETTINGS, **RUNTIME)


@pytest.mark.slow
def test_both_engines_give_the_same_tokens(random_model, tmp_path):
    rows = compare(random_model)
    write_table(tmp_path / "speed.parquet", rows, ENGINE_SPEED)
    assert {(row["engine"], row["repeat"]) for row in rows} == {
        (engine, repeat) for engine in ("ember", "transformers") for repeat in (0, 1)
    }
    for row in rows:
        assert row["status"] == "ok"
        assert row["tokens_equal_share"] == 1.0
        assert row["tokens_per_s"] == pytest.approx(5 / row["decode_ms"] * 1e3)
        if row["engine"] == "transformers":
            assert row["ratio_to_transformers"] == 1.0
        else:
            assert row["ratio_to_transformers"] > 0


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_peer_of_random_weights_has_the_decoders(tmp_path, model_type):
    sizes = dict.fromkeys(SIZES, 4) | {"vocab_size": 31, "hidden_size": 32, "head_dim": 8}
    sizes["max_positions"] = 64
    arch = Architecture.make(model_type=model_type, **sizes)
    (tmp_path / "config.json").write_text(json.dumps(arch.to_hf()))
    (tmp_path / "ember.json").write_text('{"weights": "random", "seed": 1}')
    decoder = load_decoder(tmp_path)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        peer = load_peer(tmp_path, decoder).eval()(tokens).logits
        torch.testing.assert_close(peer, decoder.logits(decoder(tokens)), atol=1e-5, rtol=0)


def test_without_transformers_its_row_is_skipped(random_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    rows = compare(random_model)
    write_table(tmp_path / "speed.parquet", rows, ENGINE_SPEED)
    [skipped] = [row for row in rows if row["engine"] == "transformers"]
    assert skipped["status"] == "skipped"
    assert "transformers" in skipped["reason"]
    ember = [row for row in rows if row["engine"] == "ember"]
    assert len(ember) == 2
    assert all(row["tokens_per_s"] > 0 and row["ratio_to_transformers"] is None for row in ember)
