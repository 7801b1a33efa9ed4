"""Editing a module reruns its dependants and nothing else."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from ember.operations.plan import Settings, planned_jobs
from ember.records.code import Library
from ember.records.provenance import provenance_of
from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.slow


@contextmanager
def edited(checkout, name: str, edit):
    """The checkout with one file changed, and put back as it was (its time too)."""
    file = checkout.path / name
    before, status = file.read_text(), file.stat()
    file.write_text(edit(before))
    try:
        yield
    finally:
        file.write_text(before)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def with_code(text: str) -> str:
    return text + "\n\ndef _added_by_the_test():\n    return 1\n"


def with_comment(text: str) -> str:
    return text + "\n# a remark\n"


# At least one file of each layer and of each kind of step.
EDITED = (
    "src/ember/backends/eager.py",
    "src/ember/c2c/select.py",
    "src/ember/c2c/wire.py",
    "src/ember/lowbit/training.py",
    "src/ember/measure/statistics.py",
    "src/ember/peers/adapters/vllm_offline.py",
    "src/ember/pipeline/wire.py",
    "src/ember/policies/cost.py",
    "src/ember/studies/c2c/compare.py",
    "src/ember/studies/c2c/real/summary.py",
    "src/ember/studies/p1/architectures/measure.py",
    "src/ember/studies/p1/lora_latency/measure.py",
    "src/ember/studies/p1/pipeline/schedule.py",
    "src/ember/studies/p1/policies/figure.py",
    "src/ember/studies/p1/prefix/measure.py",
    "src/ember/studies/p1/prefix/summary.py",
    "src/ember/streaming/cause.py",
    "src/ember/studies/paper/decisions/summary.py",
    "src/ember/studies/streaming/matrix/figure.py",
    "src/ember/studies/style.py",
    "src/ember/studies/workflow/cost/summary.py",
    "workflow/scripts/plot.py",
)
# After all products: their own cost is counted anew.
LAST = {"assess_readiness", "time_workflow", "collect_job_cost", "summarise_workflow"}


@pytest.fixture(scope="module")
def graph(finished) -> dict:
    """Of every job of a run: its files, and the code that its products say made them."""
    planned = planned_jobs(
        ["all"], Settings(config=("scale=smoke",)), every=True, folder=finished.path
    )
    return {job.name: (job, code_of(finished, job)) for job in planned}


def code_of(finished, job) -> set[Path]:
    params = provenance_of(finished.path / job.outputs[0])["params"]
    script = finished.path / "workflow" / "scripts" / params["script"]
    modules = [f"ember.studies.{params['step'].rpartition('.')[0]}"] if "step" in params else []
    return {script, *Library(finished.path / "src").closure(script, *modules)}


def dependants(graph: dict, file: Path) -> set[str]:
    """Rules whose code a file belongs to, and those after them."""
    found = {name for name, (_, code) in graph.items() if file in code}
    while True:
        made = {path for name in found for path in graph[name][0].outputs}
        after = {name for name, (job, _) in graph.items() if made & set(job.inputs)} | found
        if after == found:
            return {graph[name][0].rule for name in found}
        found = after


def test_nothing_is_left_to_do_after_a_run(finished):
    assert finished.planned("all") == {}


@pytest.mark.parametrize("name", EDITED)
def test_editing_a_module_reruns_exactly_its_dependants(finished, graph, name):
    expected = dependants(graph, finished.path / name)
    assert expected
    with edited(finished, name, with_code):
        assert set(finished.planned("all")) - {"all"} == expected
    assert finished.planned("all") == {}, "edit and revert must rerun nothing"


def test_an_edited_eviction_method_is_measured_again_alone(finished):
    """And what compares or times all of them."""
    with edited(finished, "src/ember/streaming/methods/tova.py", with_code):
        planned = finished.planned("streaming_matrix")
    assert planned["measure_eviction"] == 1
    assert {"time_tokens", "summarise_quality", "judge_matrix"} <= set(planned)
    assert not {"measure_sinks", "train_model"} & set(planned)
    with edited(finished, "src/ember/streaming/methods/max_drop.py", with_code):
        # refresh is max_drop with something kept
        assert finished.planned("streaming_matrix")["measure_eviction"] == 2
    with edited(finished, "src/ember/streaming/cache.py", with_code):
        assert finished.planned("streaming_matrix")["measure_eviction"] > 5


def test_an_edited_adapter_runs_what_asks_frameworks_again_and_no_method(finished, graph):
    files = ("src/ember/peers/adapters/kvpress_stream.py", "src/ember/peers/serve.py")
    for file in files:
        found = dependants(graph, finished.path / file)
        assert {"stream_peers", "compare_peers", "plot_peers"} <= found
        assert not {"measure_eviction", "time_tokens", "judge_matrix", "train_model"} & found
    summary = dependants(graph, finished.path / "src/ember/studies/streaming/peers/summary.py")
    assert summary - LAST == {"compare_peers", "plot_peers"}


def test_an_edited_selector_trains_nothing_again(finished):
    with edited(finished, "src/ember/c2c/select.py", with_code):
        planned = set(finished.planned("c2c_m4"))
    assert {"measure_channel", "plan_schedules", "summarise_budget"} <= planned
    assert not {"train_c2c_model", "train_c2c_fuser", "make_c2c_questions"} & planned
    with edited(finished, "src/ember/studies/c2c/selection/summary.py", with_code):
        planned = set(finished.planned("c2c_m4")) - {"c2c_m4"}
    assert planned == {"summarise_selection", "decide_channel"}


def test_an_edited_evaluation_asks_again_and_trains_nothing(finished):
    """Models and fuser take minutes; what asks them questions does not reach their training."""
    with edited(finished, "src/ember/c2c/evaluate.py", with_code):
        planned = set(finished.planned("c2c_m0"))
    assert {"answer_baselines", "time_stages", "summarise_baselines"} <= planned
    assert not {"train_c2c_model", "train_c2c_fuser", "tune_c2c_receiver"} & planned
    with edited(finished, "src/ember/studies/c2c/m0/summary.py", with_code):
        planned = set(finished.planned("c2c_m0"))
    assert planned == {*("summarise_baselines", "plot_baselines", "summarise_c2c_speed", "c2c_m0")}


def test_a_study_reruns_alone(finished, graph):
    """Narrowness: what the hashes must not cover."""
    studies = "src/ember/studies/p1"
    assert (
        dependants(graph, finished.path / f"{studies}/policies/figure.py") == {"plot_fig3"} | LAST
    )
    summary = dependants(graph, finished.path / f"{studies}/rollout/summary.py")
    assert summary == {"summarise_rollout", "plot_rollout"} | LAST
    wire = dependants(graph, finished.path / "src/ember/studies/c2c/wire/summary.py")
    assert wire - LAST == {"summarise_c2c_wire", "model_c2c_latency", "plot_c2c_wire"}
    fast = dependants(graph, finished.path / "src/ember/streaming/fast.py")
    kinds = ("measure", "time", "train", "stream")
    measured = {name for name in fast - LAST if name.startswith(kinds)}
    assert measured == {"time_streams", "time_tokens", "stream_peers"}, "no loss anew"
    training = dependants(graph, finished.path / "src/ember/lowbit/training.py")
    arms = {"train_arms", "summarise_arms", "plot_arms", "measure_step", "plot_memory"}
    arms |= {"tune_identities", "summarise_identities", "plot_identities"}
    arms |= {"compare_first_token", "find_faults"}  # one module
    assert training - LAST == arms
    kernels = finished.path / "src/ember/studies/lowbit/kernels"
    alone = dependants(graph, kernels / "products.py")
    assert alone - LAST == {"time_products", "summarise_kernels", "plot_kernels"}
    decoding = dependants(graph, kernels / "decoding.py")
    assert decoding - LAST == {"time_decoding", "summarise_decoding", "plot_kernels"}
    guard = dependants(graph, finished.path / "src/ember/measure/guard.py")
    assert guard - LAST == {"measure_overshoot"}
    wide = dependants(graph, finished.path / "src/ember/engine/scheduler.py")
    assert {"time_rollouts", "sweep_prefix"} <= wide
    for name, (job, code) in graph.items():
        if job.rule.startswith(("summarise_", "plot_", "join_", "model_cost", "decide")):
            other = [file for file in code if "/engine/" in str(file) or "/backends/" in str(file)]
            assert not other, f"{name} would rerun for an edited engine"


def test_no_summary_and_no_figure_reaches_a_measurement():
    src, library = ROOT / "src", Library(ROOT / "src")
    light = sorted((src / "ember/studies").glob("*/*/[sf][ui][mg]*.py"))
    assert len(light) > 20
    engines = ("engine", "backends", "cache", "lora", "optim", "peers", "streaming")
    for file in light:
        for reached in library.closure(file):
            name = reached.relative_to(src / "ember")
            assert name.stem not in ("measure", "make") or name.parts[0] != "studies", (file, name)
            assert name.parts[0] not in engines, (file, name)


def test_editing_the_decoder_reruns_every_job_that_runs_a_model_and_no_corpus(finished):
    with edited(finished, "src/ember/model/decoder.py", with_code):
        planned = set(finished.planned("all"))
    assert "check_architectures" in planned
    assert {"train_model", "profile_rollout", "sweep_prefix", "sweep_restart"} <= planned
    assert {"compare_frameworks", "time_loading", "measure_memory"} <= planned
    assert not {"build_corpus", "train_tokenizer", "gate_outputs"} & planned


@pytest.mark.parametrize("name", ["src/ember/model/decoder.py", "workflow/scripts/plot.py"])
def test_a_comment_or_a_touch_reruns_nothing(finished, name):
    with edited(finished, name, with_comment):
        assert finished.planned("all") == {}
    (finished.path / name).touch()
    assert finished.planned("all") == {}


def test_a_setting_reruns_only_the_rules_that_use_it(finished):
    name = "config/config.yaml"
    with edited(
        finished,
        name,
        lambda text: text.replace("low_prefill_share: 0.3", "low_prefill_share: 0.4"),
    ):
        assert set(finished.planned("all")) - {"all"} == {"decide"} | LAST
