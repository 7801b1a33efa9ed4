"""The doctor's parts and small invented folders; real runs: tests/workflow/test_doctor.py."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from ember.commands.main import main
from ember.measure.overhead import record_file
from ember.operations.doctor import bookkeeping, examine
from ember.operations.doctor.report import Finding, Report, as_text, folded, set_aside
from ember.operations.plan import BadPlan, PlannedJob, Settings
from ember.records.atomic import atomic_file, writer
from ember.records.code import Library
from ember.records.provenance import collect, describe, file_hashes, source_root, write_sidecar
from ember.records.tables import write_table
from ember.studies.paper.readiness.tables import READINESS


def row() -> dict:
    values = {column.name: (column.values or ("x",))[0] for column in READINESS.columns}
    return values | {"item": "Fig 2"}


def made(rule="assess_readiness", inputs=(), outputs=(), scale="smoke", started="2026-01-01"):
    root = source_root()
    code = Library(root / "src").code_hash(root / "workflow" / "scripts" / "publish.py")
    return collect(
        rule=rule,
        inputs=inputs,
        outputs=outputs,
        params={"script": "publish.py"},
        config={"scale": scale},
        seeds={},
        code=code,
        threads=1,
        started=started,
        seconds=1.0,
        hardware={},
    )


# Snakemake's bookkeeping


def test_temporaries_are_told_from_other_files(tmp_path):
    with atomic_file(tmp_path / "a.parquet") as part:
        assert writer(part.name) == (os.getpid(), True)
        part.touch()
    assert writer(".a.00000000-12-0.tmp.parquet") == (12, None)
    for name in ("a.parquet", ".hidden", "a.tmp"):
        assert writer(name) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"params": ["("]}', '{"params": 7}'])
def test_damaged_records_of_snakemake_are_none(tmp_path, text):
    file = tmp_path / ".snakemake/metadata" / bookkeeping.encoded("results/x")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert bookkeeping.recorded_params(tmp_path, "results/x") is None
    assert len(bookkeeping.encoded("x" * 300).parts) == 2


# What is printed


def test_files_that_are_set_aside_are_quoted():
    assert "'results/a b'" in set_aside(["results/a b"])


def test_paths_fold_by_their_stem():
    paths = ["results/a.csv", "results/a.md", "results/models/policy", "results/p.parquet"]
    assert folded(paths) == "results/a.{csv,md}, results/models/policy, results/p.parquet"


def test_a_report_says_what_why_and_how():
    behind = tuple(f"results/{n}.csv" for n in "abcd")
    finding = Finding("stale", ("results/x.png",), "older", "snakemake x", "tiny", behind)
    text = as_text(Report(".", [finding], commands=["snakemake x"]))
    for words in ("stale", "results/x.png", "why:   older", "fix:   snakemake x", "1 more"):
        assert words in text
    assert "well" not in text
    assert as_text(Report(".")) == "all is well in ./results"


# Small folders


def job(rule, inputs, outputs) -> PlannedJob:
    return PlannedJob(rule, {}, tuple(inputs), tuple(outputs))


READY = "results/readiness.parquet"


def plan_of(scale: str) -> list[PlannedJob]:
    gates = f"results/{scale}/p1/gates.parquet"
    return [
        job("check_gates", [], [gates]),
        job("decide", [gates], ["results/decisions.parquet"]),
        job("assess_readiness", ["results/decisions.parquet"], [READY]),
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three jobs in a row, and Snakemake's answers given by the test: it would run nothing."""

    def planned(targets, settings, *, every, folder):
        scale = dict(word.split("=") for word in settings.config)["scale"]
        return plan_of(scale) if every else []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examine, "planned_jobs", planned)
    return tmp_path


def make(scale: str, *, started="2026-01-01", only=("check_gates", "decide", "assess_readiness")):
    """The products of the three jobs, with their records and Snakemake's of them."""
    for planned in plan_of(scale):
        if planned.rule in only:
            [path] = planned.outputs
            provenance = made(planned.rule, planned.inputs, [path], scale, started)
            write_table(path, [row()], READINESS, provenance)
            keep(scale, planned.name, provenance | {"products": [describe(path)]})
            file = Path(".snakemake/metadata") / bookkeeping.encoded(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"params": [repr(provenance["code"])]}))


def keep(scale, name, record) -> None:
    file = record_file(scale, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))


def look(*config, profile="local", files=()) -> Report:
    return examine.examine(Path("results"), Settings(profile, config, files))


def test_a_folder_that_is_well(folder):
    make("smoke")
    report = look()
    assert report.well, report
    assert "scale smoke: 3 of 3 products stand" in report.notes
    assert any("at scale smoke; to have them at tiny" in note for note in report.notes)


def test_products_that_snakemake_knows_nothing_of_are_not_called_well(folder):
    make("smoke")
    shutil.rmtree(".snakemake")
    report = look()
    assert not report.well
    assert report.findings == []
    assert "Snakemake holds no record" in report.unchecked[0].why


def test_a_product_with_other_parameters_than_those_on_record_is_foreign(folder):
    make("smoke")
    file = folder / ".snakemake/metadata" / bookkeeping.encoded(READY)
    record = json.loads(file.read_text())
    file.write_text(json.dumps({"params": [*record["params"], "{'seed': 8}"]}))
    [finding] = look().findings
    assert (finding.kind, finding.paths) == ("foreign", (READY,))
    assert "--forcerun results/readiness.parquet" in finding.command


def test_final_products_of_two_scales_are_repaired_at_the_newer(folder):
    make("smoke")
    make("tiny", started="2026-02-01", only=("check_gates", "decide"))
    report = look()
    [finding] = report.findings
    assert finding.paths == (READY,)
    assert "not what it was made from any more: results/decisions.parquet" in finding.why
    assert finding.scale == "tiny"
    assert finding.command.endswith("--config scale=tiny")
    assert report.commands == [finding.command]


def test_one_scale_can_be_asked_for(folder):
    make("smoke")
    make("tiny", only=("check_gates",))
    (folder / "results/tiny/p1/gates.parquet").write_text("broken")
    assert look("scale=smoke").well
    [finding] = look().findings
    assert finding.paths == ("results/tiny/p1/gates.parquet",)


def test_a_product_that_snakemake_marked_as_incomplete_is_broken(folder):
    make("smoke")
    mark = folder / ".snakemake/incomplete" / bookkeeping.encoded(READY)
    mark.parent.mkdir()
    mark.touch()
    [finding] = look().findings
    assert (finding.kind, finding.paths) == ("broken", (READY,))
    assert "incomplete" in finding.why


def test_an_ancestor_at_fault_is_made_first(folder):
    make("smoke")
    (folder / "results/smoke/p1/gates.parquet").write_bytes(b"PAR1")
    (folder / READY).write_bytes(b"")
    report = look()
    gates, ready = (
        report.findings if report.findings[1].paths == (READY,) else report.findings[::-1]
    )
    assert set(gates.behind) == {"results/decisions.parquet", READY}
    assert "results/smoke/p1/gates.parquet" in ready.command
    assert report.commands == [ready.command]


def test_a_training_that_was_stopped_is_no_finding(folder, monkeypatch):
    make("smoke")
    training = PlannedJob("train_model", {"model": "m"}, (), ("results/smoke/models/m",))
    plan = [*plan_of("smoke"), training]
    monkeypatch.setattr(examine, "planned_jobs", lambda *_, every, **__: plan * every)
    state = folder / "results/smoke/states/m.pt"
    state.parent.mkdir()
    state.write_bytes(b"x")
    report = look()
    assert report.well
    assert any("a training was stopped" in note for note in report.notes)
    state.parents[1].joinpath("models/m").mkdir(parents=True)
    [finding] = [f for f in look().findings if "states" in f.paths[0]]
    assert "a training that is over" in finding.why


def test_a_link_to_nothing_comes_first_since_nothing_can_be_planned_with_it(folder):
    make("smoke")
    (folder / READY).unlink()
    (folder / READY).symlink_to(folder / "nowhere")
    report = look()
    assert report.commands == [f"rm -r {READY}"]
    assert "cannot plan" in report.unchecked[0].why
    (folder / READY).unlink()
    assert look().well


def test_a_workflow_that_cannot_be_planned_is_an_error(folder, monkeypatch):
    def refuse(*_, **__):
        raise BadPlan("the workflow cannot plan all\nunknown key 'devise'")

    make("smoke")
    monkeypatch.setattr(examine, "planned_jobs", refuse)
    with pytest.raises(BadPlan, match="devise"):
        look()


@pytest.mark.parametrize(
    ("build", "place", "said"),
    [
        (lambda: None, "results", "does not exist"),
        (lambda: open("results", "w").close(), "results", "is a file"),
        (lambda: os.mkdir("output"), "output", "is not the results folder"),
    ],
)
def test_a_place_that_is_no_results_folder_is_refused(folder, capsys, build, place, said):
    build()
    assert main(["doctor", place]) == 1
    assert said in capsys.readouterr().err


def test_someone_elses_results_are_refused(folder, capsys):
    os.mkdir("results")
    open("results/thesis.txt", "w").close()
    assert main(["doctor"]) == 1
    assert "none that this workflow makes" in capsys.readouterr().err


def test_the_command_says_so_by_its_status(folder, capsys):
    make("smoke")
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out
    (folder / "results/notes.txt").write_text("by hand")
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    [finding] = report["findings"]
    assert finding["command"] == (
        "mkdir -p set-aside/results && mv -n results/notes.txt set-aside/results"
    )


# What a product is that is not what its job wrote

GATES = "results/smoke/p1/gates.parquet"


def other_table(path, rule, outputs):
    write_table(path, [row()], READINESS, made(rule, [], outputs, started="2025"))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "broken", "is truncated"),
        (lambda p: p.write_bytes(b""), "broken", "truncated"),
        (lambda p: (p.unlink(), p.mkdir()), "broken", "a directory, not a file"),
        (lambda p: other_table(p, "decide", ["results/d"]), "foreign", "rule decide wrote it as"),
        (lambda p: other_table(p, "check_gates", [GATES]), "broken", "not what its job wrote"),
        (lambda p: write_table(p, [row()], READINESS), "foreign", "carries no provenance"),
    ],
)
def test_a_table_that_is_not_what_its_job_wrote(folder, damage, kind, words):
    make("smoke")
    damage(folder / GATES)
    [finding] = look().findings
    assert (finding.kind, finding.paths) == (kind, (GATES,))
    assert words in finding.why
    assert f"--forcerun {GATES}" in finding.command
    assert ("rm -r" in finding.command) == (folder / GATES).is_dir()


@pytest.mark.parametrize("name", ["x.csv", "x.png", "x.pdf", "x.caption.md", "x.gguf"])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_flipped_bit_in_any_product_is_found(folder, monkeypatch, name, place):
    make("smoke")
    path = Path("results/smoke") / name
    path.write_bytes(b"0123456789")
    plan = [*plan_of("smoke"), job("draw", [], [str(path)])]
    monkeypatch.setattr(examine, "planned_jobs", lambda *_, every, **__: plan * every)
    about = made("assess_readiness", [], [str(path)])
    keep("smoke", "draw", about | {"products": [describe(path)]})
    assert not look().findings
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    [finding] = look().findings
    assert finding.paths == (str(path),)
    assert finding.kind in ("broken", "foreign")


def test_a_directory_is_held_against_its_sidecar(folder):
    model = folder / "policy"
    model.mkdir()
    for name in ("config.json", "weights"):
        (model / name).write_text(name)
    assert "provenance.json" in examine._differing(model)
    write_sidecar(model, made() | {"files": file_hashes(model)})
    assert examine._differing(model) == ""
    (model / "weights").write_text("weighty")
    (model / "config.json").unlink()
    (model / "more").write_text("x")
    fault = examine._differing(model)
    for words in ("config.json is missing", "weights is not what", "more was added"):
        assert words in fault


@pytest.mark.parametrize("damage", ["", "[]", "{}"])
def test_a_product_without_its_jobs_record_is_not_called_well(folder, damage):
    make("smoke")
    record_file("smoke", "decide").write_text(damage)
    report = look()
    assert report.findings == []
    assert [item.paths for item in report.unchecked] == [("results/decisions.parquet",)]
    assert "no record of what it wrote" in report.unchecked[0].why


# Settings of the user's own


def test_commands_carry_profile_configuration_and_files_of_the_run(folder):
    make("smoke")
    (folder / GATES).write_bytes(b"")
    (folder / "mine.yaml").write_text("seed: 3\n")
    report = look("p1={a: 1}", files=("mine.yaml",), profile="slurm")
    words = shlex.split(report.commands[0])
    profile = ["--profile", str(source_root() / "slurm")]
    place = ["--snakefile", str(source_root() / "Snakefile"), "--directory", str(folder)]
    assert words[1:7] == [*place, *profile]
    files = ["--configfile", "mine.yaml", "--config", "scale=smoke", "p1={a: 1}"]
    assert words[7:] == [READY, "--forcerun", GATES, *files]
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    report = examine.examine(folder / "results", Settings(configfiles=("../mine.yaml",)))
    assert str(folder / "mine.yaml") in shlex.split(report.commands[0])


def test_what_a_users_own_configuration_made_is_not_set_aside(folder):
    make("smoke")
    own = "results/smoke/p1/mine.parquet"
    write_table(own, [row()], READINESS, made("sweep_prefix", [], [own]))
    report = look()
    assert report.findings == report.commands == []
    [unchecked] = report.unchecked
    assert unchecked.paths == (own,)
    assert "--configfile of its run" in unchecked.why
    assert main(["doctor", "--configfile", "none.yaml"]) == 1
