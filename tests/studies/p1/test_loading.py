"""Loading: each in a fresh process, cold only where the system confirms it."""

import pytest

from ember.model.checkpoint import load_decoder, save_decoder
from ember.model.gguf import export_gguf
from ember.records.tables import write_table
from ember.studies.measured import ProcessFailed
from ember.studies.p1.loading import measure as loading
from ember.studies.p1.loading.measure import time_first_token, time_loading
from ember.studies.p1.loading.process import LOADERS, main
from ember.studies.p1.loading.summary import summarise_loading
from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING, LOADING_RUNS


@pytest.fixture
def stored(random_model, tmp_path):
    """A model directory with weight files."""
    return save_decoder(load_decoder(random_model), tmp_path / "model", weights="trained")


@pytest.fixture
def found(monkeypatch):
    """Every process answers this, by decree."""
    answer = {"bytes": 4_000_000, "import_s": 1.0, "load_s": 0.5, "resident_share": None}
    monkeypatch.setattr(loading, "_in_process", lambda request: answer | kept(request))

    def kept(request):
        share = {True: answer.get("cold", 0.0), False: 1.0}[request["cold"]]
        slower = 0.1 if request["loader"] == "read" else 0.5
        return {"resident_share": share, "load_s": slower * (2 if request["cold"] else 1)}

    return answer


def run(model, gguf):
    return time_loading(model=model, gguf=gguf, repeats=2, device="cpu", dtype="float32", seed=0)


def test_every_loader_runs_cold_and_warm_and_is_judged_by_the_bytes_alone(stored, found, tmp_path):
    export_gguf(stored, None, tmp_path / "model.gguf")
    rows = run(stored, tmp_path)
    write_table(tmp_path / "runs.parquet", rows, LOADING_RUNS)
    assert len(rows) == len(LOADERS) * 2 * 2
    summary = summarise_loading(tmp_path / "runs.parquet")
    write_table(tmp_path / "summary.parquet", summary, LOADING)
    row = {(r["loader"], r["cache"]): r for r in summary}["ember", "cold"]
    assert row["load_s_median"] == 1.0
    assert row["mb_per_s"] == pytest.approx(4.0)
    assert row["limit_mb_per_s"] == pytest.approx(20.0)
    assert row["share_of_limit"] == pytest.approx(0.2)
    assert row["verified"] is True


def test_a_page_cache_that_keeps_the_file_gives_no_cold_row(stored, found, tmp_path):
    found["cold"] = 0.9
    rows = run(stored, tmp_path)
    cold = [row for row in rows if row["cache"] == "cold" and row["loader"] != "gguf"]
    assert {row["status"] for row in cold} == {"skipped"}
    assert all(row["load_s"] is None and "90%" in row["reason"] for row in cold)


def test_a_page_cache_that_nobody_can_look_into_is_said_to_be_unverified(stored, found, tmp_path):
    found["cold"] = None
    cold = [row for row in run(stored, tmp_path) if row["cache"] == "cold" and row["load_s"]]
    assert cold
    assert not any(row["verified"] for row in cold)


def test_without_a_gguf_file_its_rows_are_skipped(random_model, found, tmp_path):
    (tmp_path / "SKIPPED").write_text("random weights\n")
    rows = [row for row in run(random_model, tmp_path) if row["loader"] == "gguf"]
    assert {(row["cache"], row["status"], row["reason"]) for row in rows} == {
        ("cold", "skipped", "random weights"),
        ("warm", "skipped", "random weights"),
    }
    write_table(tmp_path / "runs.parquet", rows, LOADING_RUNS)
    assert all(row["n"] == 0 for row in summarise_loading(rows))


@pytest.mark.parametrize("loader", sorted(LOADERS))
@pytest.mark.parametrize("cold", [True, False])
def test_a_load(stored, tmp_path, loader, cold):
    gguf = export_gguf(stored, None, tmp_path / "model.gguf")
    weights = stored / "model.safetensors"
    file = gguf if loader == "gguf" else weights
    request = {"model": str(stored), "gguf": str(gguf), "device": "cpu", "dtype": "float32"}
    answer = main(request | {"files": [str(file)], "loader": loader, "cold": cold})
    assert answer["bytes"] == file.stat().st_size
    assert answer["load_s"] > 0
    assert cold or answer["resident_share"] in (1.0, None)


@pytest.mark.slow
def test_the_first_token_of_a_process(random_model, tmp_path):
    rows = time_first_token(
        model=random_model, prompt=[1, 2, 3], repeats=1, device="cpu", dtype="float32"
    )
    write_table(tmp_path / "token.parquet", rows, FIRST_TOKEN)
    [row] = rows
    assert row["import_s"] > row["prefill_s"] > 0
    assert row["prompt_tokens"] == 3


@pytest.mark.slow
def test_a_load_that_fails_says_why(stored):
    weights = stored / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ProcessFailed, match="truncated"):
        time_first_token(model=stored, prompt=[1], repeats=1, device="cpu", dtype="float32")
