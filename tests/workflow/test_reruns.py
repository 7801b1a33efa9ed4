"""Editing a module reruns its dependants and nothing else."""

import os
from contextlib import contextmanager

import pytest

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


# What depends on a file: the rules that run its code, and the rules that read their products.
LORA_FIGURES = {"plot_lora_layers", "plot_lora_blocks", "plot_lora_latency"}
ENGINE_FIGURES = {
    *("plot_roofline", "plot_pipeline", "plot_gantt", "plot_frameworks", "plot_loading")
}
FIGURES = {"plot_fig2", "plot_sec44", "plot_fig3"} | ENGINE_FIGURES | LORA_FIGURES
# Behind all products: their own cost is counted anew.
LAST = {"assess_readiness", "time_workflow", "collect_job_cost", "summarise_workflow"}
CASES = {
    "src/ember/studies/p1/policies/figure.py": {"plot_fig3"} | LAST,
    "src/ember/studies/style.py": FIGURES | {"plot_rollout"} | LAST,
    "src/ember/studies/paper/decisions/summary.py": {"decide"} | LAST,
    "src/ember/studies/p1/architectures/measure.py": {"check_architectures"} | LAST,
    "src/ember/studies/p1/pipeline/schedule.py": {
        "summarise_pipeline",
        "plot_pipeline",
        "plot_gantt",
    }
    | LAST,
    "src/ember/pipeline/wire.py": {
        "profile_layers",
        "sweep_splits",
        "profile_stages",
        "summarise_pipeline",
        "plot_pipeline",
        "plot_gantt",
        "summarise_rollout",
        "plot_fig2",
        "decide",
        # The two stages are one of the frameworks compared.
        "compare_frameworks",
        "summarise_frameworks",
        "plot_frameworks",
    }
    | LAST,
    "src/ember/policies/cost.py": {
        "model_cost",
        "summarise_policies",
        "plot_fig3",
    }
    | LAST,
    "src/ember/studies/p1/prefix/measure.py": {
        "sweep_prefix",
        "join_prefix",
        "summarise_prefix",
        "plot_sec44",
        "model_cost",
        "summarise_policies",
        "plot_fig3",
        "decide",
    }
    | LAST,
    "src/ember/studies/p1/lora_latency/measure.py": {
        "time_lora",
        "summarise_lora_latency",
        "plot_lora_latency",
        "model_cost",
        "summarise_policies",
        "plot_fig3",
        "decide",
    }
    | LAST,
    "src/ember/studies/workflow/cost/summary.py": {
        "time_workflow",
        "collect_job_cost",
        "summarise_workflow",
    },
    "src/ember/peers/adapters/vllm_offline.py": {
        "compare_frameworks",
        "summarise_frameworks",
        "plot_frameworks",
    }
    | LAST,
    "workflow/scripts/plot_fig2.py": {"plot_fig2"} | LAST,
}


def test_nothing_is_left_to_do_after_a_run(finished):
    assert finished.planned("all") == {}


@pytest.mark.parametrize("name", CASES)
def test_editing_a_module_reruns_exactly_its_dependants(finished, name):
    with edited(finished, name, with_code):
        assert set(finished.planned("all")) - {"all"} == CASES[name]
    assert finished.planned("all") == {}, "edit and revert must rerun nothing"


def test_editing_the_decoder_reruns_every_job_that_runs_a_model_and_no_corpus(finished):
    with edited(finished, "src/ember/model/decoder.py", with_code):
        planned = set(finished.planned("all"))
    assert "check_architectures" in planned
    assert {"train_model", "profile_rollout", "sweep_prefix", "sweep_restart"} <= planned
    assert {"compare_frameworks", "time_loading", "measure_memory"} <= planned
    assert not {"build_corpus", "train_tokenizer", "gate_outputs"} & planned


@pytest.mark.parametrize("name", ["src/ember/model/decoder.py", "workflow/scripts/plot_fig3.py"])
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
