"""`ember estimate` and the minutes asked of a cluster, on the workflow itself."""

import json

import pytest

from ember.commands.main import main
from ember.operations.estimate import estimate
from ember.operations.history import read_history
from ember.operations.plan import Settings, planned_jobs

CONFIG = ("scale=smoke",)
SMOKE = Settings(config=CONFIG)


def benchmark(folder, job, text):
    place = folder / "results" / "smoke" / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{job}.jsonl").write_text(text)


def seconds(value, rule=None):
    return json.dumps({"s": value, "max_rss": 50.0, "rule_name": rule})


def minutes(folder, profile="local"):
    jobs = planned_jobs(["p1_fig3"], Settings(profile, CONFIG), folder=folder)
    return {job.name: job.resources["runtime"] for job in jobs}


def test_minutes_come_from_earlier_runs_and_stay_below_the_limit(tmp_path):
    limits = minutes(tmp_path)
    assert limits["train_model_policy"] > 7
    benchmark(tmp_path, "train_model_policy", seconds(130.0))
    benchmark(tmp_path, "build_corpus_long", seconds(1.0, "build_corpus"))
    benchmark(tmp_path, "sweep_restart", seconds(10_000.0))
    benchmark(tmp_path, "make_workload", "cut off")
    asked = minutes(tmp_path)
    assert asked["train_model_policy"] == 7, "130 s x 3, in whole minutes"
    assert asked["build_corpus_long"] == 5, "runtime_minimum"
    assert asked["build_corpus_short"] == 5, "by the other corpus"
    assert asked["sweep_restart"] == limits["sweep_restart"], "not above the limit"
    assert asked["make_workload"] == limits["make_workload"]
    assert minutes(tmp_path, "slurm") == asked


def test_the_factor_and_the_minimum_are_settings(tmp_path):
    benchmark(tmp_path, "train_model_policy", seconds(60.0))
    config = (*CONFIG, "resources={runtime_factor: 6, runtime_minimum: 1}")
    jobs = planned_jobs(["p1_gates"], Settings(config=config), folder=tmp_path)
    assert {j.name: j.resources["runtime"] for j in jobs}["train_model_policy"] == 6


def test_a_fresh_folder_has_no_records_of_this_scale_and_is_not_created(tmp_path):
    fresh = tmp_path / "none" / "here"
    found = estimate(["p1_gates"], SMOKE, folder=fresh)
    assert len(found["no_record"]) == sum(found["jobs"].values()) > 0
    assert found["wall_s"] == 0
    assert found["wall_with_limits_s"] > 0
    assert found["free_at"] == str(tmp_path)
    assert not fresh.parent.exists()


def test_records_of_this_folder_price_the_plan(tmp_path, capsys):
    benchmark(tmp_path, "train_model_policy", seconds(130.0))
    benchmark(tmp_path, "gate_smoke", "{")
    command = ["estimate", "p1_gates", "--directory", str(tmp_path), "--config", *CONFIG]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "wall time      2 min 10 s" in out
    assert "1 job by the last run here (machine not recorded)" in out
    assert "without a record, in the figures only under 'with limits'" in out
    assert "gate_smoke.jsonl is not a benchmark: left out" in out
    assert main([*command[:-2], "--json", *command[-2:]]) == 0
    assert json.loads(capsys.readouterr().out)["wall_s"] == 130.0


def test_an_unknown_target_is_one_message(tmp_path, capsys):
    assert main(["estimate", "p1_fig33", "--directory", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "p1_fig33" in captured.err
    assert captured.err.startswith("error: ")


def test_an_unknown_profile_is_one_message(tmp_path, capsys):
    assert main(["estimate", "--profile", "pbs", "--directory", str(tmp_path)]) == 1
    assert "is no profile" in capsys.readouterr().err


@pytest.mark.parametrize("cores", ["0", "-1", "two"])
def test_cores_are_a_positive_number(cores, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["estimate", "--cores", cores])
    assert "--cores" in capsys.readouterr().err


@pytest.mark.slow
def test_after_a_run_nothing_is_planned_and_everything_is_known(finished):
    before = estimate(["all"], SMOKE, folder=finished.path)
    assert before["jobs"] == {}, "minutes by new records rerun nothing"
    found = estimate(["all"], SMOKE, every=True, folder=finished.path)
    assert found["no_record"] == []
    assert found["unsized"] == []
    assert found["write_bytes"] == found["replace_bytes"] > 0
    assert found["wall_s"] > 0
    [basis] = found["rests_on"]
    assert basis.startswith("the last run here (")
    assert "not recorded" not in basis
    history = read_history("smoke", finished.path / "results")
    assert {record.gpu for record in history.records} == {False}, "benchmarks say the device"
