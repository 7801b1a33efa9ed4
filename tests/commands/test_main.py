"""The command line: what it prints, and how it fails."""

import json
import subprocess
import sys

import pytest

from ember.commands.main import main
from ember.records.provenance import collect
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import write_table

TIMES = Schema(
    "times",
    "Prefill times",
    (Column("context", "int", "tokens", "prompt length"), Column("ms", "float", "ms"), EVIDENCE),
)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"context": n, "ms": n / 3, "evidence": "measured"} for n in range(1, 31)]
    facts = {key: {} for key in ("params", "config", "seeds")}
    hardware = {"cpu": "Toy CPU", "cores": 2}
    made = collect(
        **(facts | {"seeds": {"seed": 7}}),
        rule="fit",
        inputs=[],
        outputs=["t.parquet"],
        code="c0de",
        threads=1,
        started="2026-01-02T03:04:05+00:00",
        seconds=2.0,
        hardware=hardware,
    )
    return write_table("t.parquet", rows, TIMES, made)


def test_show(table, capsys):
    assert main(["show", "t.parquet", "--rows", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("t.parquet: times, 30 rows\nPrefill times\n")
    assert "prompt length" in out
    assert "context [tokens]" in out
    assert "0.6667" in out
    assert "… 27 more rows (--rows 30 shows all)" in out
    for part in ("rule: fit", "seeds: {'seed': 7}", "machine: Toy CPU, 2 cores", "code: c0de"):
        assert part in out


def test_why(table, capsys):
    assert main(["why", "t.parquet"]) == 0
    assert "rule fit" in capsys.readouterr().out


def test_why_of_a_rendering_says_whose_provenance_it_shows(table, capsys):
    table.with_suffix(".csv").write_text("context\n")
    assert main(["why", "t.csv"]) == 0
    assert capsys.readouterr().out.startswith("t.csv stands beside t.parquet, which carries")


def test_config_schema(capsys):
    assert main(["config-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "gone.parquet"], "error: gone.parquet does not exist\nmake it with"),
        (["why", "gone.png"], "error: gone.png does not exist"),
        (["show", "cut.parquet"], "error: cut.parquet is truncated"),
    ],
)
def test_errors_are_one_message(table, capsys, arguments, says):
    table.with_name("cut.parquet").write_bytes(table.read_bytes()[:100])
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(says)


@pytest.mark.parametrize(
    "arguments", [[], ["shwo"], ["show"], ["show", "t.parquet", "--rows", "x"]]
)
def test_a_wrong_command_line_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: ember" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(table):
    command = [sys.executable, "-m", "ember.commands.main", "show", "t.parquet", "--rows", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_looking_at_a_table_imports_neither_torch_nor_pandas(table):
    command = (
        "import sys; from ember.commands.main import main; main(['show', 't.parquet']); "
        "print({'torch', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


MEASUREMENTS = {
    "profile-rollout": ["--contexts", "8", "12", "--generations", "2", "--repeats", "2"],
    "cache-sweep": ["--prompts", "12", "--prefix-fractions", "0.5", "--documents", "2"],
    "memory-budget": ["--context", "16", "--batch", "2"],
}
SHOWN = {
    "profile-rollout": ("prefill_share_median [fraction]", "single-12-2"),
    "cache-sweep": ("savings_low", "documents"),
    "memory-budget": ("predicted_bytes [bytes]", "kv_per_token"),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_of_a_model_are_shown_and_kept(name, random_model, tmp_path, capsys):
    out = tmp_path / "kept.parquet"
    arguments = [name, str(random_model), "--device", "cpu", "--out", str(out)]
    assert main(arguments + MEASUREMENTS[name]) == 0
    text = capsys.readouterr().out
    for words in (*SHOWN[name], f"rule: ember {name}", "seeds: {'seed': 0}"):
        assert words in text
    assert out.is_file()


def test_a_measurement_of_no_model_is_one_message(tmp_path, capsys):
    assert main(["memory-budget", str(tmp_path / "none")]) == 1
    assert "there is no model directory" in capsys.readouterr().err


def test_a_prefix_must_be_a_share(random_model, capsys):
    with pytest.raises(SystemExit):
        main(["cache-sweep", str(random_model), "--prefix-fractions", "1.5"])
    assert "not between 0 and 1" in capsys.readouterr().err


def test_generate_writes_completions_of_a_file(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    arch = {"model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 11}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"head_dim": 4, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    (model / "config.json").write_text(json.dumps(arch | heads | more))
    (model / "ember.json").write_text('{"weights": "random", "seed": 1}')
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"tokens": [1, 2]}\n{"tokens": [3]}\n')
    out, lines = tmp_path / "completions.parquet", tmp_path / "completions.jsonl"
    words = ["generate", str(model), str(prompts), "--out", str(out), "--jsonl", str(lines)]
    assert main([*words, "--n", "2", "--max-tokens", "3"]) == 0
    assert "4 completions" in capsys.readouterr().out
    assert len(lines.read_text().splitlines()) == 4
    assert main(["show", str(out)]) == 0
    assert "ember generate" in capsys.readouterr().out
    assert main([*words, "--stop", "x"]) == 1
    assert "error:" in capsys.readouterr().err
