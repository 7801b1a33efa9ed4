"""Real pairs by the configuration alone: local models, fuser and questions, to the final table."""

import pytest

from ember.c2c.fuser import FuserShape
from ember.model.folder import read_architecture
from ember.records.tables import read_rows
from ember.studies.c2c.real.tables import C2C_REAL
from tests.c2c import real
from tests.workflow.conftest import SMOKE, checkout

pytestmark = pytest.mark.slow

TARGET = "results/c2c_real.parquet"
MINE = """
models: {qwen: {source: local, path: receiver}, llama: {source: local, path: sharer}}
c2c:
  real:
    pairs:
      mine: {sharer: llama, receiver: qwen, fuser: {source: ./fuser, folder: final}}
      bare: {sharer: llama, receiver: qwen, alignment: span_end}
    benchmarks: {obqa: {source: ./obqa.jsonl, items: 24, limit: 12}}
    grids:
      - kv_quant_config: {scheme: [int8]}
        kv_transfer_config: {token_select_mode: [back], token_select_proportion: [1.0, 0.5]}
    new_tokens: 4
    message_tokens: 6
    batch_size: 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = checkout(tmp_path_factory.mktemp("real") / "ember")
    receiver = real.model(run.path / "receiver", "qwen", "qwen3", seed=1, num_layers=4)
    sharer = real.model(run.path / "sharer", "llama", "llama", seed=2, num_kv_heads=1)
    shape = FuserShape.of(read_architecture(sharer), read_architecture(receiver), 16)
    real.published(run.path / "fuser", shape, (0, 0, 1, 2))
    real.openbookqa(run.path / "obqa.jsonl", 24)
    (run.path / "mine.yaml").write_text(MINE)
    run.snakemake(TARGET, "--configfile", "mine.yaml", *SMOKE)
    return run


def test_every_method_has_its_row(run):
    rows = read_rows(run.path / TARGET, C2C_REAL)
    mine = {r["method"]: r for r in rows if (r["pair"], r["evidence"]) == ("mine", "measured")}
    bare = {r["method"]: r for r in rows if (r["pair"], r["evidence"]) == ("bare", "measured")}
    ran = {"receiver", "sharer", "text", "c2c", "shuffled", "zero", "routing", "oracle"}
    points = {"int8-token", "int8-token-back-0.5"}
    assert {m for m, r in mine.items() if r["status"] == "ok"} == ran | points
    assert {m for m, r in bare.items() if r["status"] == "ok"} == ran - {"c2c", "shuffled", "zero"}
    assert "no fuser was given" in bare["c2c"]["reason"]
    for row in (*mine.values(), *bare.values()):
        if row["status"] != "ok":
            assert row["reason"]
            continue
        assert (row["n"], row["weights"]) == (12, "pretrained")
        assert row["low"] <= row["accuracy"] <= row["high"]
        answered = sum(row[f"answered_{x}"] for x in "abcde") + row["failures"]
        assert answered == pytest.approx(1)
    assert mine["oracle"]["accuracy"] >= max(mine[m]["accuracy"] for m in ("receiver", "sharer"))
    assert (mine["c2c"]["alignment"], bare["text"]["alignment"]) == ("longest", "span_end")
    assert mine["c2c"]["bytes"] > mine["text"]["bytes"] > mine["receiver"]["bytes"] == 0
    assert mine["c2c"]["bytes"] > mine["int8-token"]["bytes"]
    assert mine["int8-token"]["bytes"] > 1.8 * mine["int8-token-back-0.5"]["bytes"]
    assert mine["int8-token"]["change_low"] <= mine["int8-token"]["change"]
    assert mine["c2c"]["change"] is None
    assert mine["c2c"]["fuse_ms"] > 0
    assert mine["receiver"]["fuse_ms"] is None
    assert mine["text"]["total_ms"] > mine["receiver"]["total_ms"]
    assert {r["accuracy"] for r in rows if r["evidence"] == "reference"} >= {0.526, 0.5452}


def test_files_of_the_user_are_followed(run):
    def planned():
        return run.planned(TARGET, "--configfile", "mine.yaml")

    assert planned() == {}
    answered = {"answer_questions": 1, "summarise_real": 1}
    for name, reruns in (
        ("fuser/final/projector_1.pt", {"fetch_fuser": 1, **answered}),
        ("obqa.jsonl", {"collect_questions": 1, **answered, "answer_questions": 2}),
    ):
        file = run.path / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        assert planned() == reruns
        file.write_bytes(before)
    assert planned() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sharer: llama", "sharer: lama"), "llama"),
        (("./obqa.jsonl", "./gone.jsonl"), "gone.jsonl"),
        (("source: ./fuser", "source: ./gone"), "gone"),
        (("new_tokens: 4", "template: 'no question'"), "{question}"),
        (("alignment: span_end", "alignment: prefix"), "span_end"),
    ],
)
def test_what_is_not_there_is_said_before_any_work(run, change, said):
    (run.path / "other.yaml").write_text(MINE.replace(*change))
    done = run.snakemake("-n", TARGET, "--configfile", "other.yaml", *SMOKE, check=False)
    assert done.returncode
    assert said in done.stdout


def test_a_wrong_fuser_or_a_short_file_fails_with_its_cause(run):
    (run.path / "other.yaml").write_text(MINE.replace("items: 24", "items: 500"))
    done = run.snakemake(TARGET, "--configfile", "other.yaml", *SMOKE, check=False)
    assert done.returncode
    assert "24 questions with keys from A to D, and 500 are expected" in done.stdout
    (run.path / "other.yaml").write_text(
        MINE.replace("folder: final}", "folder: final}, alignment: first")
    )
    done = run.snakemake(TARGET, "--configfile", "other.yaml", *SMOKE, check=False)
    assert done.returncode
    assert "trained with alignment 'longest'" in done.stdout
