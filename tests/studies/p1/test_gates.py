"""Gates: each gives its row or stops with what is wrong."""

import pytest
import torch

from ember.measure.device import NoDevice
from ember.records.tables import write_table
from ember.studies.p1.gates import smoke
from ember.studies.p1.gates.environment import check_environment
from ember.studies.p1.gates.gguf import check_gguf_export
from ember.studies.p1.gates.outputs import check_outputs
from ember.studies.p1.gates.row import GateFailed, passed
from ember.studies.p1.gates.snapshot import check_snapshot
from ember.studies.p1.gates.summary import check_gates
from ember.studies.p1.gates.tables import GATES, MODEL_SNAPSHOT
from ember.studies.shared.models.fetch import NoModel, fetch_model

SHAPE = {
    "model_type": "qwen3",
    "num_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
    "max_positions": 128,
}
RANDOM = {"source": "random", "preset": None, "architecture": SHAPE}


@pytest.fixture
def model(tmp_path):
    fetch_model(RANDOM, tmp_path / "model", seed=1)
    return tmp_path / "model"


def test_the_environment_is_recorded(tmp_path):
    rows = check_environment(device="cpu", dtype="float32", seed=5)
    assert "seed 5" in rows[0]["detail"]
    assert f"torch {torch.__version__.split('+')[0]}" in rows[0]["detail"]
    write_table(tmp_path / "gate.parquet", rows, GATES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(NoDevice):
        check_environment(device="cuda", dtype="bfloat16", seed=5)


def test_outputs_are_whole_or_absent(tmp_path):
    [row] = check_outputs(tmp_path)
    assert row["passed"]
    assert list(tmp_path.iterdir()) == []


def test_the_snapshot_hashes_every_file_but_the_jobs_own_provenance(model, tmp_path):
    gate, files = check_snapshot(model, name="policy")
    assert {file["file"] for file in files} == {"config.json", "ember.json"}
    (model / "provenance.json").write_text("{}")
    again, _ = check_snapshot(model, name="policy")
    assert again == gate
    (model / "ember.json").write_text((model / "ember.json").read_text() + "\n")
    assert check_snapshot(model, name="policy")[0] != gate
    write_table(tmp_path / "snapshot.parquet", files, MODEL_SNAPSHOT)


def test_random_weights_have_no_gguf_and_the_row_says_why(model, tmp_path):
    [row] = check_gguf_export(model, tmp_path / "gguf")
    assert row["status"] == "skipped"
    assert "random weights" in row["detail"]


def test_a_gate_that_does_not_hold_stops_all_measurements(tmp_path):
    write_table(tmp_path / "a.parquet", [passed("a", "fine")], GATES)
    bad = passed("b", "logits differ") | {"passed": False, "status": "failed"}
    write_table(tmp_path / "b.parquet", [bad], GATES)
    assert len(check_gates([tmp_path / "a.parquet"])) == 1
    with pytest.raises(GateFailed, match="b: logits differ"):
        check_gates([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_an_engine_that_is_not_greedy_fails_the_smoke_gate(model, monkeypatch):
    monkeypatch.setattr(smoke, "_greedy_gap", lambda *_: 1.5)
    settings = {"tokens": 8, "new_tokens": 2, "tolerance": 1e-4}
    with pytest.raises(GateFailed, match=r"1\.5 below the decoder's best"):
        smoke.check_smoke(model, device="cpu", dtype="float32", seed=1, **settings)


def test_a_wrong_token_shows_in_the_greedy_gap(model):
    from ember.model.checkpoint import load_decoder

    decoder = load_decoder(model, "cpu", torch.float32)
    prompt = [1, 2, 3]
    logits = decoder.logits(decoder(torch.tensor([prompt]))[:, -1:])[0, 0]
    assert smoke._greedy_gap(decoder, prompt, [int(logits.argmax())]) == 0
    assert smoke._greedy_gap(decoder, prompt, [int(logits.argmin())]) > 0


@pytest.mark.slow
def test_two_stages_in_two_processes_give_the_logits_of_one(model):
    from ember.pipeline.logits import StageFailed, two_stage_logits

    one, two = two_stage_logits(model, [1, 2, 3, 4], device="cpu")
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    (model / "config.json").unlink()
    with pytest.raises(StageFailed):
        two_stage_logits(model, [1, 2], device="cpu")


def test_a_local_model_is_linked_and_a_missing_one_refused(model, tmp_path):
    settings = {"source": "local", "path": str(model)}
    fetch_model(settings, tmp_path / "copy", seed=0)
    assert (tmp_path / "copy/config.json").read_text() == (model / "config.json").read_text()
    with pytest.raises(NoModel, match=r"models\.NAME\.path"):
        fetch_model({"source": "local", "path": str(tmp_path)}, tmp_path / "none", seed=0)
