"""The doctor's parts and small invented folders; real runs: tests/workflow/test_doctor.py."""

import json
import os
import shlex
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.commands.main import main
from ember.operations.doctor import bookkeeping, examine, whole
from ember.operations.doctor.report import Call, Finding, Report, as_text, folded, set_aside
from ember.operations.plan import BadPlan, PlannedJob
from ember.records.atomic import atomic_file
from ember.records.code import code_hash
from ember.records.provenance import (
    collect,
    file_hashes,
    source_root,
    write_sidecar,
)
from ember.records.render import render
from ember.records.schema import Column, Schema
from ember.records.tables import read_table, write_table
from ember.studies.paper.readiness.tables import READINESS
from ember.studies.style import save, style


def row() -> dict:
    values = {column.name: (column.values or ("x",))[0] for column in READINESS.columns}
    return values | {"item": "Fig 2"}


def made(rule="assess_readiness", inputs=(), outputs=(), scale="smoke", started="2026-01-01"):
    root = source_root()
    code = code_hash(root / "workflow" / "scripts" / f"{rule}.py", root / "src")
    return collect(
        rule=rule,
        inputs=inputs,
        outputs=outputs,
        params={},
        config={"scale": scale},
        seeds={},
        code=code,
        threads=1,
        started=started,
        seconds=1.0,
        hardware={},
    )


# Whole or not


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """A table with its renderings and a figure with its caption, all whole."""
    folder = tmp_path_factory.mktemp("products")
    provenance = made()
    table = write_table(folder / "readiness.parquet", [row()], READINESS, provenance)
    render(read_table(table), READINESS, folder / "readiness", provenance)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([1, 2], [3, 4])
        save(figure, folder / "p1_fig2", "Figure. 4 tokens.", provenance)
    return folder


NAMES = [f"readiness.{e}" for e in ("parquet", "csv", "md", "tex")]
NAMES += [f"p1_fig2.{e}" for e in ("png", "pdf", "caption.md")]


def test_whole_products_have_no_fault(products):
    assert sorted(path.name for path in products.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert whole.check(products / name) == whole.Verdict(), name


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_every_product_that_is_cut_off_is_found(products, tmp_path, name, share):
    copied = shutil.copytree(products, tmp_path / "copy", dirs_exist_ok=True)
    content = (copied / name).read_bytes()
    # A PDF's line end behind %%EOF carries nothing.
    kept = int(share * (len(content) - (name.endswith(".pdf"))))
    (copied / name).write_bytes(content[:kept])
    assert whole.check(copied / name).fault, kept


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".pdf")])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing_that_is_read(
    products, tmp_path, name, share, bit
):
    copied = shutil.copytree(products, tmp_path / "copy", dirs_exist_ok=True)
    content = bytearray((copied / name).read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    (copied / name).write_bytes(content)
    found = whole.check(copied / name).fault
    if name.endswith(".parquet"):  # page statistics and padding are not content
        assert found or read_table(copied / name).equals(read_table(products / name))
    else:
        assert found


def test_a_stream_of_a_pdf_that_changed_is_found(products, tmp_path):
    content = bytearray((products / "p1_fig2.pdf").read_bytes())
    content[content.index(b"stream") + 40] ^= 1
    (tmp_path / "f.pdf").write_bytes(content)
    assert "stream" in whole.check(tmp_path / "f.pdf").fault


def test_a_directory_is_held_against_its_sidecar(tmp_path):
    model = tmp_path / "policy"
    model.mkdir()
    for name in ("config.json", "weights"):
        (model / name).write_text(name)
    assert "provenance.json" in whole.check(model).fault
    write_sidecar(model, made())
    assert "no hashes" in whole.check(model).unchecked
    write_sidecar(model, made() | {"files": file_hashes(model)})
    assert whole.check(model) == whole.Verdict()
    (model / "weights").write_text("weighty")
    (model / "config.json").unlink()
    (model / "more").write_text("x")
    fault = whole.check(model).fault
    for words in ("config.json is missing", "weights is not what", "more was added"):
        assert words in fault


def test_kind_link_schema_and_rights(tmp_path, products):
    (tmp_path / "a.parquet").mkdir()
    assert "a directory, not a file" in whole.check(tmp_path / "a.parquet").fault
    (tmp_path / "model").write_text("x")
    assert "a file, not a directory" in whole.check(tmp_path / "model").fault
    (tmp_path / "b.csv").symlink_to(tmp_path / "nowhere")
    assert "a link to nothing" in whole.check(tmp_path / "b.csv").fault
    gone = Schema("gone", "Of another time", (Column("n", "int"),))
    write_table(tmp_path / "c.parquet", [{"n": 1}], gone)
    assert "no longer declared" in whole.check(tmp_path / "c.parquet").fault
    other = Schema("readiness", "Of another time", (Column("n", "int"),))
    write_table(tmp_path / "d.parquet", [{"n": 1}], other)
    assert "lacks the column item" in whole.check(tmp_path / "d.parquet").fault
    shutil.copy(products / "readiness.csv", tmp_path / "e.csv")
    assert "no e.parquet beside it" in whole.check(tmp_path / "e.csv").unchecked


# Snakemake's bookkeeping


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=400))
def test_names_of_marks_are_read_back(path):
    assert bookkeeping._decoded(bookkeeping._encoded(path)) == path


def test_temporaries_are_told_from_other_files(tmp_path):
    with atomic_file(tmp_path / "a.parquet") as part:
        assert bookkeeping.temporary(part.name) == bookkeeping.Temporary(os.getpid(), True)
        part.touch()
    elsewhere = ".a.00000000-12-0.tmp.parquet"
    assert bookkeeping.temporary(elsewhere) == bookkeeping.Temporary(12, None)
    for name in ("a.parquet", ".hidden", "a.tmp"):
        assert bookkeeping.temporary(name) is None


# What is printed


def test_commands_quote_and_put_targets_first():
    call = Call("slurm", ("seed=3",))
    words = shlex.split(call.command("tiny", ["results/a b.png"], "--forcerun", "x"))
    assert words[:4] == ["snakemake", "results/a b.png", "--forcerun", "x"]
    assert words[4:] == ["--profile", "slurm", "--config", "scale=tiny", "seed=3"]
    assert "'results/a b'" in set_aside(["results/a b"])


def test_paths_fold_by_their_stem():
    paths = ["results/a.csv", "results/a.md", "results/models/policy", "results/p.parquet"]
    assert folded(paths) == "results/a.{csv,md}, results/models/policy, results/p.parquet"


def test_a_report_says_what_why_and_how():
    behind = tuple(f"results/{n}.csv" for n in "abcd")
    finding = Finding("stale", ("results/x.png",), "older", "snakemake x", "tiny", behind)
    text = as_text(Report(".", [finding], commands=["snakemake x"]))
    for words in ("stale", "results/x.png", "why:   older", "mend:  snakemake x", "1 more"):
        assert words in text
    assert "well" not in text
    assert as_text(Report(".")) == "all is well in ./results"


# Small folders


def job(rule, inputs, outputs) -> PlannedJob:
    return PlannedJob(0, rule, {}, tuple(inputs), tuple(outputs), (), None, 1, {}, "")


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

    def planned(targets, *, profile, config, every, folder):
        scale = dict(word.split("=") for word in config)["scale"]
        return plan_of(scale) if every else []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examine, "planned_jobs", planned)
    return tmp_path


def make(scale: str, *, started="2026-01-01", only=("check_gates", "decide", "assess_readiness")):
    """The products of the three jobs, with Snakemake's records of them."""
    for planned in plan_of(scale):
        if planned.rule in only:
            [path] = planned.outputs
            provenance = made(planned.rule, planned.inputs, [path], scale, started)
            write_table(path, [row()], READINESS, provenance)
            record = bookkeeping._encoded(path)
            file = examine.Path(".snakemake/metadata") / record
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"params": [repr(provenance["code"])]}))


def look(**options) -> Report:
    return examine.examine(examine.Path("results"), **options)


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
    file = folder / ".snakemake/metadata" / bookkeeping._encoded(READY)
    record = json.loads(file.read_text())
    file.write_text(json.dumps({"params": [*record["params"], "{'seed': 8}"]}))
    [finding] = look().findings
    assert (finding.kind, finding.paths) == ("foreign", (READY,))
    assert "--forcerun results/readiness.parquet" in finding.command


def test_final_products_of_two_scales_are_mended_at_the_newer(folder):
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
    assert look(config=["scale=smoke"]).well
    [finding] = look().findings
    assert finding.paths == ("results/tiny/p1/gates.parquet",)


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
    training = PlannedJob(
        0, "train_model", {"model": "m"}, (), ("results/smoke/models/m",), (), None, 1, {}, ""
    )
    monkeypatch.setattr(
        examine, "planned_jobs", lambda t, *, every, **_: [*plan_of("smoke"), training] * every
    )
    (folder / "results/smoke/states").mkdir()
    (folder / "results/smoke/states/m.pt").write_bytes(b"x")
    report = look()
    assert report.well
    assert any("a training was stopped" in note for note in report.notes)


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
