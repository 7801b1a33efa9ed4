"""The comparison: rounds in turns, ratios within rounds, and rows for what cannot run."""

import json
import sys

import pytest

from ember.records.tables import write_table
from ember.studies.p1.frameworks import measure as frameworks
from ember.studies.p1.frameworks.measure import compare_frameworks
from ember.studies.p1.frameworks.summary import summarise_frameworks
from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS, FRAMEWORKS
from ember.studies.p1.workload.make import WorkloadTooSmall, make_workload, read_workload
from ember.studies.p1.workload.tables import WORKLOAD

POINT = {"name": "small-4-5", "prompt_tokens": 4, "new_tokens": 5}
LOOP = POINT | {"loop": {"prompts": 5, "candidates": 2}}


@pytest.fixture
def ground(random_model, tmp_path, monkeypatch):
    """What the comparison is given, and how it is called."""
    monkeypatch.setattr(frameworks, "_read_bandwidth", lambda device: 10.0)
    workload = tmp_path / "workload.parquet"
    write_table(
        workload, make_workload(model=random_model, documents=3, tokens=8, seed=0), WORKLOAD
    )
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "SKIPPED").write_text("random weights are drawn on load\n")

    def compare(known, repeats=3, points=(POINT,)):
        return compare_frameworks(
            model=random_model,
            workload=workload,
            gguf=tmp_path / "gguf",
            points=points,
            peers=known,
            repeats=repeats,
            warmup=1,
            timeout_s=20,
            threads=1,
            device="cpu",
            dtype="float32",
            seed=0,
        )

    return compare


@pytest.fixture
def fake(tmp_path):
    """A framework whose process takes the times given, and appends its name to a file."""

    def make(name, ttft_s=0.1, total_s=0.5, program=None, **kept):
        ready = {"event": "ready", "load_s": 0.5, "versions": {name: "1.0"}, "threads": 1}
        ready |= {"kv_cache": "static", "kv_dtype": "float32", "attention": "own"}
        ready |= {"prompt_kv": "prefix cache"} | kept
        program = program or (
            "sys.stdin.readline(); print(json.dumps(ready), flush=True)\n"
            "for line in sys.stdin:\n"
            f"    open({str(tmp_path / 'asked')!r}, 'a').write(json.dumps([{name!r}, "
            "json.loads(line)]) + '\\n')\n"
            "    answer(json.loads(line))"
        )
        file = tmp_path / f"python-{name}"
        file.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            f"ready = {ready!r}\n"
            "def answer(asked):\n"
            "    row = list(range(1, asked['new_tokens'] + 1))\n"
            f"    total_s = {ttft_s} if asked['new_tokens'] == 1 else {total_s}\n"
            "    tokens = [[row] * asked['candidates'] for _ in asked['prompts']]\n"
            "    run = {'event': 'run', 'total_s': total_s, 'tokens': tokens}\n"
            "    print(json.dumps(run), flush=True)\n"
            f"{program}\n"
        )
        file.chmod(0o755)
        adapter = "ember_engine" if name == "ember" else "transformers_generate"
        return {"adapter": adapter, "python": str(file)}

    return make


def asked(tmp_path) -> list[tuple[str, dict]]:
    """Who was asked what, in order."""
    return [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]


def check(rows, tmp_path):
    """Both tables fit their schemas; the summary by framework."""
    write_table(tmp_path / "runs.parquet", rows, FRAMEWORK_RUNS)
    summary = summarise_frameworks(tmp_path / "runs.parquet")
    write_table(tmp_path / "summary.parquet", summary, FRAMEWORKS)
    rollouts = {row["framework"]: row for row in summary if row["workload"] == "rollout"}
    return rollouts | {f"{r['framework']} loop": r for r in summary if r["workload"] == "loop"}


def test_every_framework_runs_once_a_round_beginning_with_another_one(ground, fake, tmp_path):
    rows = ground({"ember": fake("ember"), "other": fake("other")})
    order = [name for name, request in asked(tmp_path) if request["new_tokens"] > 1]
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert len(rounds) == 4
    assert all(sorted(names) == ["ember", "other"] for names in rounds)
    assert [names[0] for names in rounds[::2]] == [rounds[0][0]] * 2 != [rounds[1][0]] * 2
    assert {(row["framework"], row["repeat"]) for row in rows} == {
        (name, repeat) for name in ("ember", "other") for repeat in range(3)
    }
    for row in rows:
        assert rounds[row["repeat"] + 1][row["place"]] == row["framework"]


def test_no_prompt_comes_twice_but_to_all_frameworks(ground, fake, tmp_path):
    ground({"ember": fake("ember"), "other": fake("other")}, points=[LOOP])
    prompts = {
        name: [
            tuple(prompt)
            for who, request in asked(tmp_path)
            if who == name
            for prompt in request["prompts"]
        ]
        for name in ("ember", "other")
    }
    assert prompts["ember"] == prompts["other"]
    assert len(prompts["ember"]) == len(set(prompts["ember"])) == 2 * 4 * (1 + 5)


def test_prompts_that_a_workload_cannot_give_are_an_error(random_model):
    rows = make_workload(model=random_model, documents=2, tokens=8, seed=0)
    with pytest.raises(WorkloadTooSmall, match="4 prompts of 99 tokens are wanted of 2 documents"):
        list(frameworks.fresh_prompts(read_workload(rows), 99, 4))


def test_the_loop_is_compared_by_the_throughput_of_all_candidates(ground, fake, tmp_path):
    loop = LOOP["loop"] | {"fewer": {"other": 2, "out": 0}}
    known = {"ember": fake("ember"), "other": fake("other", total_s=1.0), "out": fake("out")}
    summary = check(ground(known, points=[LOOP | {"loop": loop}]), tmp_path)
    ember, other = summary["ember loop"], summary["other loop"]
    assert (ember["prompts"], ember["candidates"], other["prompts"]) == (5, 2, 2)
    assert ember["total_tokens_per_s_median"] == pytest.approx(5 * 2 * 5 / 0.5)
    assert other["total_tokens_per_s_median"] == pytest.approx(2 * 2 * 5 / 1.0)
    assert other["ember_ratio"] == pytest.approx(100 / 20)
    assert other["ttft_per_prompt_ms_median"] == pytest.approx(other["ttft_ms_median"] / 2)
    assert "prompts 2, not 5" in other["caveats"]
    assert ember["decode_tokens_per_s_median"] is ember["limit_tokens_per_s"] is None
    assert ember["tokens_equal_share"] is None, "they are drawn"
    assert summary["out"]["status"] == "ok"
    assert (summary["out loop"]["status"], summary["out loop"]["n"]) == ("skipped", 0)
    assert "left out of this workload" in summary["out loop"]["reason"]
    requests = [request for _, request in asked(tmp_path)]
    assert {(r["candidates"], r["temperature"]) for r in requests} == {(1, 0.0), (2, 1.0)}


def test_who_fails_at_one_rollout_has_a_row_for_the_loop_too(ground, fake, tmp_path):
    program = (
        "sys.stdin.readline(); print(json.dumps(ready), flush=True)\n"
        "print('no room', file=sys.stderr); sys.exit(1)"
    )
    known = {"ember": fake("ember"), "crashes": fake("crashes", program=program)}
    summary = check(ground(known, points=[LOOP]), tmp_path)
    for name in ("crashes", "crashes loop"):
        assert summary[name]["status"] == "failed"
        assert "no room" in summary[name]["reason"]


def test_ratios_and_speeds_follow_from_the_times(ground, fake, tmp_path):
    ember = fake("ember", ttft_s=0.1, total_s=0.5)
    other = fake("other", ttft_s=0.2, total_s=1.0, kv_dtype="float16", threads=2, decode_threads=1)
    summary = check(ground({"ember": ember, "other": other}), tmp_path)
    row = summary["other"]
    assert row["decode_tokens_per_s_median"] == pytest.approx(4 / 0.8)
    assert row["total_tokens_per_s_median"] == pytest.approx(5 / 1.0)
    assert row["tpot_ms_median"] == pytest.approx(200.0)
    assert row["ttft_ms_median"] == pytest.approx(200.0)
    assert row["ember_ratio"] == pytest.approx(2.0)
    assert row["decode_tokens_per_s_cv"] == pytest.approx(0.0, abs=1e-9)
    assert row["first_run_s"] == pytest.approx(1.2)
    assert row["caveats"] == (
        "KV number format float16, not float32; threads 2, not 1; decodes on 1 of 2 threads; "
        "other random weights"
    )
    assert row["tokens_equal_share"] is None, "other random weights give other tokens"
    assert summary["ember"]["ember_ratio"] == 1.0
    assert summary["ember"]["tokens_equal_share"] == 1.0
    assert summary["ember"]["caveats"] is None


def test_a_framework_has_the_environment_that_its_configuration_says(ground, fake, tmp_path):
    other = fake(
        "other", program="import os; sys.exit('PYTHONPATH is ' + os.environ['PYTHONPATH'])"
    )
    rows = ground({"other": other | {"environment": {"PYTHONPATH": "/packages"}}})
    assert [row["reason"] for row in rows] == [
        "ended with exit status 1; last line: PYTHONPATH is /packages"
    ]


def test_what_cannot_run_is_a_row_with_the_reason(ground, fake, tmp_path):
    missing = {"event": "error", "missing": True, "reason": "ModuleNotFoundError: no x"}
    crash = (
        "sys.stdin.readline(); print(json.dumps(ready), flush=True)\n"
        "for _ in range(4):\n"
        "    answer(json.loads(sys.stdin.readline()))\n"
        "print('out of memory', file=sys.stderr); sys.exit(1)"
    )
    summary = check(
        ground(
            {
                "ember": fake("ember"),
                "absent": {"adapter": "vllm_offline", "python": str(tmp_path / "none")},
                "uninstalled": fake("u", program=f"print('''{json.dumps(missing)}''')"),
                "crashes": fake("crashes", program=crash),
                "gguf": {"adapter": "llama_cpp_decode", "python": None},
            }
        ),
        tmp_path,
    )
    status = {name: (row["status"], row["reason"]) for name, row in summary.items()}
    assert status["ember"] == ("ok", None)
    assert status["absent"] == ("skipped", f"{tmp_path / 'none'} is not there")
    assert status["uninstalled"] == ("skipped", "ModuleNotFoundError: no x")
    assert status["crashes"] == ("failed", "ended with exit status 1; last line: out of memory")
    assert summary["crashes"]["n"] == 1, "what was measured before the crash is kept"
    assert status["gguf"][1] == "reads GGUF, and there is none: random weights are drawn on load"


def test_a_point_that_needs_a_peer_is_skipped_without_it(ground, fake, tmp_path):
    absent = {"adapter": "llama_cpp_decode", "python": str(tmp_path / "none")}
    point = {"name": "shape", "preset": "qwen3-0.6b", "prompt_tokens": 4, "new_tokens": 5}
    rows = ground(
        {"ember": fake("ember"), "llama_cpp": absent}, points=[point | {"needs": "llama_cpp"}]
    )
    assert {row["framework"] for row in rows} == {"ember", "llama_cpp"}
    for row in rows:
        assert row["status"] == "skipped"
        assert row["reason"].startswith("compares with llama_cpp: ")
        assert (row["model"], row["weights"]) == ("qwen3-0.6b", "random")
    check(rows, tmp_path)


@pytest.mark.slow
def test_ember_and_transformers_give_the_same_tokens(trained_model, tmp_path):
    known = {"ember": {"adapter": "ember_engine"}, "hf": {"adapter": "transformers_generate"}}
    documents = make_workload(model=trained_model, documents=4, tokens=8, seed=0)
    point = POINT | {"loop": {"prompts": 2, "candidates": 2, "fewer": {"hf": 1}}}
    rows = frameworks._run_point(
        frameworks.Ground(trained_model, None, "none", read_workload(documents)),
        frameworks._about(point, trained_model, "cpu", "float32")[1],
        frameworks.loads(point, 1),
        known,
        repeats=1,
        timeout_s=120,
        threads=1,
        seed=0,
    )
    summary = check(rows, tmp_path)
    assert {row["status"] for row in summary.values()} == {"ok"}
    assert summary["hf"]["tokens_equal_share"] == 1.0
    assert summary["hf"]["weights_format"] == "safetensors"
    assert summary["hf"]["attention"] == "sdpa"
    assert summary["hf loop"]["caveats"].endswith("prompts 1, not 2")


@pytest.fixture
def trained_model(random_model, tmp_path):
    """A directory with weight files."""
    from ember.model.checkpoint import load_decoder, save_decoder

    return save_decoder(load_decoder(random_model), tmp_path / "stored", weights="trained")


def test_the_limit_is_the_best_bandwidth_found_and_none_within_the_cache(monkeypatch):
    from ember.measure import roofline

    monkeypatch.setattr(roofline, "last_cache_bytes", lambda device: 10**8)
    large = frameworks._limit(2 * 10**9, "cpu", [8.0, 10.0, 9.0])
    assert large == {"read_gb_s": 10.0, "limit_tokens_per_s": 5.0}
    assert frameworks._limit(10**7, "cpu", [8.0])["limit_tokens_per_s"] is None
