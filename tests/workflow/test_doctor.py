"""Damage a finished run, let the doctor look, run what it prints, and compare."""

import base64
import json
import os
import shutil
import subprocess
import sys

import pytest

from ember.records.atomic import atomic_file
from ember.records.provenance import read_sidecar, write_sidecar
from ember.records.tables import (
    read_rows,
    read_table,
    table_provenance,
    table_schema,
    write_table,
)
from tests.workflow.conftest import SMOKE, Checkout

pytestmark = pytest.mark.slow

COST = "results/smoke/p1/policies/cost.parquet"
ROUNDS = "results/smoke/p1/policies/rounds.parquet"


@pytest.fixture
def copy(finished, tmp_path) -> Checkout:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished.path, tmp_path / "ember", symlinks=True)
    return Checkout(tmp_path / "ember")


def shell(checkout, command: str) -> str:
    """Run a command as a user would who copies it from the doctor's report."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=checkout.path,
        env=own_code(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}"
    return done.stdout


def own_code(checkout) -> dict:
    return checkout.environment({"PYTHONPATH": str(checkout.path / "src")})


def doctor(checkout, *arguments) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "ember.commands.main", "doctor", "--json", *arguments],
        cwd=checkout.path,
        env=own_code(checkout),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("{"), done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["well"] else 1)
    return report


def finding(report: dict, path: str) -> dict:
    found = [f for f in report["findings"] if path in f["paths"]]
    assert len(found) == 1, json.dumps(report, indent=1)
    return found[0]


def state(folder) -> dict:
    return {
        str(path): (status.st_mtime_ns, status.st_size)
        for path in sorted(folder.rglob("*"))
        if (status := path.stat()) and path.is_file()
    }


def truncate(file) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def flip(file, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def replace_with_older(file) -> None:
    """Another whole table of the same job in its place, older than the one before."""
    before = file.stat().st_mtime - 3600
    schema, provenance = table_schema(file), table_provenance(file)
    rows = read_rows(file)
    name = next(c.name for c in reversed(schema.columns) if c.type == "float" and not c.nullable)
    write_table(file, [row | {name: row[name] * 1.01} for row in rows], schema, provenance)
    os.utime(file, (before, before))


def mark_incomplete(checkout, path: str) -> None:
    name = base64.urlsafe_b64encode(path.encode()).decode()
    mark = checkout.path / ".snakemake" / "incomplete" / name
    mark.parent.mkdir(exist_ok=True)
    mark.write_text('{"external_jobid": null}')


def test_a_finished_run_is_well_and_stays_as_it_was(finished):
    before = state(finished.path / "results"), state(finished.path / ".snakemake" / "metadata")
    report = doctor(finished)
    assert report["well"], json.dumps(report, indent=1)
    assert report["commands"] == []
    assert any("tiny" in note for note in report["notes"])
    assert before == (
        state(finished.path / "results"),
        state(finished.path / ".snakemake" / "metadata"),
    )
    assert finished.planned("all") == {}


def test_broken_products_are_fixed_by_the_commands_printed(copy):
    results = copy.path / "results"
    policies = read_table(results / "p1_policies.parquet")
    caption = (results / "p1_fig3.caption.md").read_text()
    sentence = (results / "p1_prefill_share.csv").read_text()

    truncate(results / "p1_policies.parquet")
    flip(results / "p1_sec44.png", 5000)
    truncate(results / "p1_fig2.pdf")
    (results / "p1_fig3.caption.md").write_text(caption.replace("%", "per cent"))
    (results / "p1_prefill_share.csv").write_text(sentence.replace("0.", "0.9", 1))
    (results / "p1_prefix_savings.tex").write_text("")
    mark_incomplete(copy, "results/decisions.csv")

    report = doctor(copy)
    said = {
        "results/p1_policies.parquet": "truncated",
        "results/p1_sec44.png": "not what its job wrote",
        "results/p1_fig2.pdf": "truncated",
        "results/p1_fig3.caption.md": "not what its job wrote",
        "results/p1_prefill_share.csv": "not what its job wrote",
        "results/p1_prefix_savings.tex": "not what its job wrote",
        "results/decisions.csv": "incomplete",
    }
    for path, words in said.items():
        found = finding(report, path)
        assert found["kind"] == "broken"
        assert words in found["why"], found
        assert found["command"].startswith("snakemake ")
    assert {p for f in report["findings"] for p in f["paths"]} == said.keys()
    assert finding(report, "results/p1_prefill_share.csv")["behind"]

    # All rest on one another through the tables that are made from everything: fixed together.
    for command in report["commands"]:
        shell(copy, command)
    after = doctor(copy)
    assert after["well"], json.dumps(after, indent=1)
    assert read_table(results / "p1_policies.parquet").equals(policies)
    assert (results / "p1_fig3.caption.md").read_text() == caption
    assert (results / "p1_prefill_share.csv").read_text() == sentence


@pytest.mark.parametrize(
    ("damage", "kind", "path", "words"),
    [
        (
            lambda c: replace_with_older(c.path / COST),
            "broken",
            COST,
            "not what its job wrote",
        ),
        (
            lambda c: (c.path / ROUNDS).unlink(),
            "stale",
            ROUNDS,
            "missing, though",
        ),
        (
            lambda c: shutil.copy2(c.path / ROUNDS, c.path / COST),
            "foreign",
            COST,
            f"rule simulate_policies wrote it as {ROUNDS}",
        ),
    ],
    ids=["replaced with an older file", "missing input", "copy of another table"],
)
def test_what_snakemake_does_not_see_is_found_and_fixed(copy, damage, kind, path, words):
    before = read_table(copy.path / COST)
    damage(copy)
    assert "plot_fig3" not in copy.planned("all"), "Snakemake sees it by itself"
    report = doctor(copy)
    found = finding(report, path)
    assert found["kind"] == kind
    assert words in found["why"]
    for command in report["commands"]:
        shell(copy, command)
    after = doctor(copy)
    assert after["well"], json.dumps(after, indent=1)
    assert read_table(copy.path / COST).equals(before)


def test_other_code_and_another_setting_make_products_stale(copy):
    code = copy.path / "src/ember/studies/p1/policies/figure.py"
    code.write_text(code.read_text() + "\n\ndef _added_by_the_test():\n    return 1\n")
    setting = copy.path / "config/config.yaml"
    text = setting.read_text()
    setting.write_text(text.replace("low_prefill_share: 0.3", "low_prefill_share: 0.4"))
    assert setting.read_text() != text
    report = doctor(copy)
    drawn = finding(report, "results/p1_fig3.png")
    assert drawn["kind"] == "stale"
    assert "made by other code" in drawn["why"]
    decided = finding(report, "results/decisions.parquet")
    assert "Params have changed" in decided["why"]
    assert any("settings of your own" in note for note in report["notes"])
    # Snakemake sees both by itself: only what is to be made has to be named.
    [command] = report["commands"]
    assert "--forcerun" not in command
    shell(copy, command)
    assert doctor(copy)["well"]


def test_a_killed_workflow_leaves_a_lock_and_strays_that_are_cleared_away(copy):
    locks = copy.path / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text("results/p1_fig3.png\n")
    p1 = copy.path / "results/smoke/p1"
    with atomic_file(p1 / "workload.parquet") as part:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        left = p1 / part.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
        shutil.copy2(p1 / "workload.parquet", left)
        shutil.copy2(left, part)
    stray = p1 / "mine.parquet"
    shutil.copy2(p1 / "gates.parquet", stray)
    (copy.path / "results/notes.txt").write_text("by hand")
    (copy.path / "results/huge/p1").mkdir(parents=True)
    (copy.path / "results/huge/p1/x.csv").write_text("a\n1\n")
    old = copy.path / "results/smoke/models/former"
    shutil.copytree(copy.path / "results/smoke/models/policy", old)
    made = read_sidecar(old) | {"outputs": ["results/smoke/models/former"]}
    write_sidecar(old, made)

    report = doctor(copy)
    assert finding(report, ".snakemake/locks/0.output.lock")["kind"] == "lock"
    for path, words in {
        str(left.relative_to(copy.path)): "left over by a killed job",
        "results/smoke/p1/mine.parquet": "rule check_gates wrote it as results/smoke/p1/gates",
        "results/notes.txt": "no rule makes it",
        "results/huge": "no scale is called huge",
    }.items():
        found = finding(report, path)
        assert found["kind"] == "foreign"
        assert words in found["why"]
    [own] = [item for item in report["unchecked"] if "--configfile of its run" in item["why"]]
    assert own["paths"] == ["results/smoke/models/former"]
    assert copy.snakemake("all", *SMOKE, check=False).returncode, "the lock holds"
    for command in report["commands"]:
        shell(copy, command)
    assert (copy.path / "set-aside/results/notes.txt").read_text() == "by hand"
    shutil.rmtree(old)
    after = doctor(copy)
    assert after["well"], json.dumps(after, indent=1)


def test_a_damaged_model_is_trained_again_with_all_that_rests_on_it(copy):
    model = copy.path / "results/smoke/models/policy"
    weights = (model / "model.safetensors").read_bytes()
    flip(model / "model.safetensors", len(weights) - 9)
    os.utime(model / "model.safetensors", (1e9, 1e9))
    shutil.rmtree(copy.path / "results/smoke/p1/gguf")
    (copy.path / "results/smoke/tokenizer/provenance.json").unlink()
    (copy.path / "results/smoke/p1/workload.parquet").unlink()
    (copy.path / "results/smoke/p1/workload.parquet").mkdir()
    report = doctor(copy)
    assert (
        "model.safetensors is not what its job wrote"
        in finding(report, "results/smoke/models/policy")["why"]
    )
    assert "no provenance.json" in finding(report, "results/smoke/tokenizer")["why"]
    assert "missing, though" in finding(report, "results/smoke/p1/gguf")["why"]
    assert "directory, not a file" in finding(report, "results/smoke/p1/workload.parquet")["why"]
    [command] = report["commands"]
    shell(copy, command)
    after = doctor(copy)
    assert after["well"], json.dumps(after, indent=1)
    assert (model / "model.safetensors").read_bytes() == weights


def test_a_running_workflow_is_said_instead_of_a_lock(copy):
    (copy.path / COST).unlink()
    gate = copy.path / "hold"
    os.mkfifo(gate)
    # A job that waits: its step reads from a pipe that the test holds open.
    step = copy.path / "src/ember/studies/p1/policies/cost.py"
    step.write_text(f"{step.read_text()}\nopen({str(gate)!r}).read()\n")
    run = subprocess.Popen(
        [sys.executable, "-m", "snakemake", COST, *SMOKE],
        cwd=copy.path,
        env=own_code(copy),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with gate.open("w"):  # opens when the job reads
            report = doctor(copy)
        assert not [f for f in report["findings"] if f["kind"] == "lock"]
        assert any("a workflow is running here" in u["why"] for u in report["unchecked"])
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
        run.wait()


def test_a_run_with_a_configuration_of_ones_own_is_judged_and_fixed_with_it(copy):
    (copy.path / "mine.yaml").write_text("p1: {decisions: {low_prefill_share: 0.4}}\n")
    own = ("--configfile", "mine.yaml", "--config", "scale=smoke")
    copy.snakemake("all", "--profile", "local", *own)
    assert doctor(copy, *own)["well"]
    truncate(copy.path / "results/decisions.parquet")
    report = doctor(copy, *own)
    [command] = report["commands"]
    assert "--configfile mine.yaml --config scale=smoke" in command
    shell(copy, command)
    assert doctor(copy, *own)["well"]
