"""The comparison: rounds in turns, ratios within rounds, and rows for what cannot run."""

import json
import sys

import pytest

from ember.records.tables import write_table
from ember.studies.p1.frameworks import measure as frameworks
from ember.studies.p1.frameworks.measure import compare_frameworks
from ember.studies.p1.frameworks.summary import summarise_frameworks
from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS, FRAMEWORKS
from ember.studies.p1.workload.make import make_workload
from ember.studies.p1.workload.tables import WORKLOAD

POINT = {"name": "small-4-5", "prompt_tokens": 4, "new_tokens": 5}


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

    def make(name, ttft_s=0.1, total_s=0.5, tokens=(1, 2, 3, 4, 5), program=None, **kept):
        ready = {"event": "ready", "load_s": 0.5, "versions": {name: "1.0"}, "threads": 1}
        ready |= {"kv_cache": "static", "kv_dtype": "float32", "ttft_until": "logits"} | kept
        run = {"event": "run", "ttft_s": ttft_s, "total_s": total_s, "tokens": list(tokens)}
        program = program or (
            "sys.stdin.readline(); print(json.dumps(ready), flush=True)\n"
            "for line in sys.stdin:\n"
            f"    open({str(tmp_path / 'order')!r}, 'a').write({name + ' '!r})\n"
            "    print(json.dumps(run), flush=True)"
        )
        file = tmp_path / f"python-{name}"
        file.write_text(
            f"#!{sys.executable}\nimport json, sys\nready = {ready!r}\nrun = {run!r}\n{program}\n"
        )
        file.chmod(0o755)
        adapter = "ember_engine" if name == "ember" else "transformers_generate"
        return {"adapter": adapter, "python": str(file)}

    return make


def check(rows, tmp_path):
    """Both tables fit their schemas; the summary by framework."""
    write_table(tmp_path / "runs.parquet", rows, FRAMEWORK_RUNS)
    summary = summarise_frameworks(tmp_path / "runs.parquet")
    write_table(tmp_path / "summary.parquet", summary, FRAMEWORKS)
    return {row["framework"]: row for row in summary}


def test_every_framework_runs_once_a_round_beginning_with_another_one(ground, fake, tmp_path):
    rows = ground({"ember": fake("ember"), "other": fake("other")})
    order = (tmp_path / "order").read_text().split()
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert len(rounds) == 4
    assert all(sorted(names) == ["ember", "other"] for names in rounds)
    assert len({names[0] for names in rounds}) == 2
    assert {(row["framework"], row["repeat"]) for row in rows} == {
        (name, repeat) for name in ("ember", "other") for repeat in range(3)
    }


def test_ratios_and_speeds_follow_from_the_times(ground, fake, tmp_path):
    ember = fake("ember", ttft_s=0.1, total_s=0.5)
    other = fake("other", ttft_s=0.2, total_s=1.0, kv_dtype="float16", threads=2, decode_threads=1)
    summary = check(ground({"ember": ember, "other": other}), tmp_path)
    row = summary["other"]
    assert row["decode_tokens_per_s_mean"] == pytest.approx(4 / 0.8)
    assert row["total_tokens_per_s_mean"] == pytest.approx(5 / 1.0)
    assert row["tpot_ms_mean"] == pytest.approx(200.0)
    assert row["ttft_ms_mean"] == pytest.approx(200.0)
    assert row["ember_ratio"] == pytest.approx(2.0)
    assert row["decode_tokens_per_s_cv"] == pytest.approx(0.0, abs=1e-9)
    assert row["first_run_s"] == 1.0
    assert row["caveats"] == (
        "KV number format float16, not float32; threads 2, not 1; decodes on 1 of 2 threads; "
        "other random weights"
    )
    assert row["tokens_equal_share"] is None, "other random weights give other tokens"
    assert summary["ember"]["ember_ratio"] == 1.0
    assert summary["ember"]["tokens_equal_share"] == 1.0
    assert summary["ember"]["caveats"] is None


def test_what_cannot_run_is_a_row_with_the_reason(ground, fake, tmp_path):
    missing = {"event": "error", "missing": True, "reason": "ModuleNotFoundError: no x"}
    crash = (
        "sys.stdin.readline(); print(json.dumps(ready), flush=True)\n"
        "sys.stdin.readline(); print(json.dumps(run), flush=True)\n"
        "sys.stdin.readline(); print(json.dumps(run), flush=True)\n"
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
def test_ember_and_transformers_give_the_same_tokens(ground, trained_model, tmp_path):
    known = {"ember": {"adapter": "ember_engine"}, "hf": {"adapter": "transformers_generate"}}
    rows = frameworks._run_point(
        frameworks.Ground(trained_model, None, "none", [[1, 2, 3, 4]] * 2),
        frameworks._about(POINT, trained_model, "cpu", "float32")[1],
        known,
        1,
        1,
        120,
        1,
        0,
    )
    summary = check(rows, tmp_path)
    assert {row["status"] for row in summary.values()} == {"ok"}
    assert summary["hf"]["tokens_equal_share"] == 1.0
    assert summary["hf"]["weights_format"] == "safetensors"


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
