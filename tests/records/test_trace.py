"""The walk back reaches every input and says which files changed since."""

import pytest

from ember.records.errors import BadProvenance
from ember.records.provenance import figure_metadata, write_sidecar
from ember.records.tables import write_table
from ember.records.trace import CHANGED, MATCHES, MISSING, format_trace, mismatches, nodes, trace

LONG, MODEL, SWEEP, COST = (
    f"results/smoke/{name}"
    for name in ("long.parquet", "models/toy", "sweep.parquet", "cost.parquet")
)
FIGURE = "results/fig3.png"


@pytest.fixture
def chain(tmp_path, monkeypatch, times, rows, made):
    """corpus -> model -> sweep -> cost -> figure; the sweep reads corpus and model."""
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    write_table(LONG, rows, times, made("build_corpus", [], [LONG]))
    model = tmp_path / MODEL
    model.mkdir(parents=True)
    (model / "weights").write_text("www")
    write_sidecar(model, made("train", [LONG], [MODEL], code="feed" * 8))
    write_table(SWEEP, rows, times, made("sweep", [LONG, MODEL], [SWEEP]))
    write_table(COST, rows, times, made("cost", [SWEEP], [COST]))
    found = made("plot", [COST, SWEEP], [FIGURE])
    Figure(figsize=(1, 1)).savefig(FIGURE, metadata=figure_metadata(found))
    return tmp_path


def states(top):
    return {node.path: node.state for node in nodes(top) if node.state}


def test_every_input_is_reached(chain):
    top = trace(FIGURE)
    assert states(top) == dict.fromkeys([COST, SWEEP, LONG, MODEL], MATCHES)
    rules = {node.path: node.provenance["rule"] for node in nodes(top)}
    assert rules == {
        FIGURE: "plot",
        COST: "cost",
        SWEEP: "sweep",
        LONG: "build_corpus",
        MODEL: "train",
    }
    assert [node.path for node in top.inputs] == [COST, SWEEP]
    assert mismatches(top) == []


def test_the_text_names_tables_jobs_code_commit_and_machine(chain):
    text = format_trace(trace(FIGURE))
    for part in (LONG, MODEL, SWEEP, COST, "rule train", "rule plot", "code feedfeedfeed"):
        assert part in text
    assert "code c0dec0dec0de" in text
    assert "commit " in text or "no git, tree " in text
    assert "machine 1: Toy CPU, 2 cores, 8.0 GB" in text
    assert "3 tables, 5 rules led to results/fig3.png" in text
    assert "scale: smoke" in text
    assert "versions: python 3." in text
    assert text.endswith("every file above is what was recorded when it was read")
    # The sweep is printed in full once, then referred to.
    assert text.count("rule sweep") == 1
    assert f"{SWEEP} [matches] (above)" in text


def test_what_changed_since_is_named_and_nothing_else(chain, times, rows, made):
    rows[0]["prefill_ms"] = 13.0
    write_table(SWEEP, rows, times, made("sweep", [LONG, MODEL], [SWEEP]))
    top = trace(FIGURE)
    assert [node.path for node in mismatches(top)] == [SWEEP]
    text = format_trace(top)
    assert f"{SWEEP} [changed since]" in text
    assert "1 files are not what results/fig3.png was made from" in text
    assert "snakemake --profile local results/fig3.png" in text


def test_one_reader_may_have_seen_the_new_content_and_another_the_old(chain, times, rows, made):
    write_table(LONG, rows[:1], times, made("build_corpus", [], [LONG]))
    write_table(SWEEP, rows, times, made("sweep", [LONG, MODEL], [SWEEP]))
    write_table(COST, rows, times, made("cost", [SWEEP], [COST]))
    top = trace(COST)
    assert {n.state for n in nodes(top) if n.path == LONG} == {MATCHES, CHANGED}
    assert [node.path for node in mismatches(top)] == [LONG]


def test_a_changed_model_directory(chain):
    (chain / MODEL / "weights").write_text("wwx")
    assert states(trace(SWEEP)) == {MODEL: CHANGED, LONG: MATCHES}


def test_a_missing_input_ends_the_walk_there(chain):
    (chain / SWEEP).unlink()
    top = trace(FIGURE)
    assert states(top) == {COST: MATCHES, SWEEP: MISSING}
    assert f"{SWEEP}: missing" in format_trace(top)


def test_a_damaged_input_is_reported_not_raised(chain):
    (chain / SWEEP).write_bytes((chain / SWEEP).read_bytes()[:-9])
    top = trace(FIGURE)
    assert states(top) == {COST: MATCHES, SWEEP: CHANGED}
    assert f"{SWEEP} is truncated" in format_trace(top)


def test_a_foreign_input_is_reported(chain, times, rows, made):
    (chain / "local.txt").write_text("text")
    write_table(COST, rows, times, made("cost", ["local.txt"], [COST]))
    text = format_trace(trace(COST))
    assert "local.txt: no provenance: not made by the workflow" in text


def test_a_product_that_names_itself_does_not_loop(chain, times, rows, made):
    write_table(COST, rows, times, made("cost", [COST], [COST]))
    top = trace(COST)
    assert [node.problem for node in top.inputs] == ["it names itself among its inputs"]


def test_from_another_directory(chain, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    top = trace(tmp_path / FIGURE)
    assert states(top) == dict.fromkeys([COST, SWEEP, LONG, MODEL], MATCHES)


def test_renderings_are_traced_by_their_table(chain):
    (chain / "results/smoke/cost.csv").write_text("context\n")
    assert trace("results/smoke/cost.csv").path == COST


def test_products_without_origin_are_an_error(chain, times, rows):
    write_table("bare.parquet", rows, times)
    with pytest.raises(BadProvenance, match=r"bare\.parquet carries no provenance"):
        trace("bare.parquet")
    with pytest.raises(BadProvenance, match=r"gone\.png does not exist"):
        trace("gone.png")
    (chain / "notes.txt").write_text("")
    with pytest.raises(BadProvenance, match="carries no provenance"):
        trace("notes.txt")
