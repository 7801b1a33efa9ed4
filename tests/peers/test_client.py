"""The protocol: what a peer answers, and what becomes of one that crashes, stalls or is missing."""

import ast
import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.model.checkpoint import load_decoder
from ember.peers import serve
from ember.peers.client import ADAPTERS, Peer, PeerFailed, PeerMissing

SETUP = {"threads": 1, "arguments": {}}
READY = {"event": "ready", "import_s": 0.1, "load_s": 0.2}
RUN = {"event": "run", "total_s": 0.3, "tokens": [[[1, 2]]]}


@pytest.fixture
def interpreter(tmp_path):
    """Makes an executable that stands where a peer's Python would, with a program of its own."""

    def make(program: str) -> Path:
        file = tmp_path / f"python{len(list(tmp_path.iterdir()))}"
        file.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{program}\n")
        file.chmod(0o755)
        return file

    return make


def answers(*events: dict) -> str:
    """A program that reads a line and answers the next of the events."""
    return (
        f"for event in {list(events)!r}:\n"
        "    sys.stdin.readline(); print(json.dumps(event), flush=True)"
    )


def peer(python, timeout_s=20.0):
    return Peer("llama_cpp_decode", python, SETUP, timeout_s=timeout_s)


def test_a_dialogue(interpreter):
    with peer(interpreter(answers(READY, RUN))) as running:
        assert running.start() == READY
        assert running.generate([[5, 6]], 2) == RUN


def test_an_answer_of_another_length_is_a_failure(interpreter):
    with peer(interpreter(answers(READY, RUN, RUN))) as running:
        running.start()
        with pytest.raises(PeerFailed, match="other than 3 tokens for each of 1 candidates of 1"):
            running.generate([[5, 6]], 3)
        with pytest.raises(PeerFailed, match="2 candidates"):
            running.generate([[5, 6]], 2, candidates=2)


def test_its_own_environment_reaches_the_process(interpreter, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    python = interpreter(
        "sys.stdin.readline()\n"
        "print(json.dumps({'event': 'ready', 'path': os.environ.get('PYTHONPATH'), "
        "'kept': os.environ.get('OMP_NUM_THREADS')}))"
    )
    given = {"PYTHONPATH": "/theirs", "VLLM_NO_USAGE_STATS": 1}
    with Peer("vllm_offline", python, SETUP, timeout_s=20, environment=given) as running:
        assert running.start() == {"event": "ready", "path": "/theirs", "kept": "1"}


def test_the_setup_and_the_adapter_reach_the_process(interpreter):
    program = (
        "setup = json.loads(sys.stdin.readline())\n"
        "print(json.dumps({'event': 'ready', 'setup': setup, 'arguments': sys.argv[1:], "
        "'path': os.environ.get('PYTHONPATH'), 'threads': os.environ['OMP_NUM_THREADS']}))"
    )
    with peer(interpreter(program)) as running:
        ready = running.start()
    assert ready["setup"] == SETUP
    assert ready["arguments"] == [serve.__file__, "llama_cpp_decode"]
    assert ready["path"] is None, "another environment must not see this one's packages"
    assert ready["threads"] == "1"


def test_a_missing_interpreter_and_a_missing_package_are_missing(interpreter, tmp_path):
    with pytest.raises(PeerMissing, match="is not there"), peer(tmp_path / "none") as running:
        running.start()
    reason = "ModuleNotFoundError: No module named 'llama_cpp'"
    error = {"event": "error", "missing": True, "reason": reason}
    with pytest.raises(PeerMissing, match=reason), peer(interpreter(answers(error))) as running:
        running.start()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('boom', file=sys.stderr); sys.exit(3)", "exit status 3; last line: boom"),
        ("os.kill(os.getpid(), 9)", "signal SIGKILL; last line: nothing on stderr"),
        ("print('hello')", "no answer but 'hello"),
        (answers(RUN), "answered 'run' where 'ready' was due"),
        (answers({"event": "error", "missing": False, "reason": "bad file"}), "bad file"),
    ],
)
def test_a_broken_peer_fails_with_its_last_words(interpreter, program, message):
    with pytest.raises(PeerFailed, match=message), peer(interpreter(program)) as running:
        running.start()


def test_what_a_broken_peer_said_is_in_the_log(interpreter, caplog):
    program = "print('CUDA: a line', file=sys.stderr); print('and the next', file=sys.stderr)"
    with pytest.raises(PeerFailed), peer(interpreter(program)) as running:
        running.start()
    assert "CUDA: a line\nand the next" in caplog.text


def test_a_peer_that_says_nothing_is_ended_with_its_children(interpreter, tmp_path):
    program = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('still compiling', file=sys.stderr, flush=True); time.sleep(60)"
    )
    with pytest.raises(PeerFailed, match="no answer within 3 s; last line: still compiling"):
        peer(interpreter(program), timeout_s=3.0).start()
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.05)
    pytest.fail("the peer's worker outlived it")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def serve_lines(adapter: str, *lines: dict) -> list[dict]:
    """What the adapter answers to the setup and the requests."""
    answered = io.StringIO()
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    assert serve.main([adapter], io.StringIO(asked), answered) == 0
    return [json.loads(line) for line in answered.getvalue().splitlines()]


GREEDY = {"prompts": [[1, 2, 3, 4]], "candidates": 1, "new_tokens": 6, "temperature": 0.0}
LOOP = {"prompts": [[1, 2, 3], [4, 5, 6]], "candidates": 3, "new_tokens": 4, "temperature": 1.0}


def on(model) -> dict:
    setup = SETUP | {"model": str(model), "weights": "random", "device": "cpu"}
    return setup | {"dtype": "float32", "seed": 0, "capacity": 16, "candidates": 3}


def test_the_engine_answers_as_it_does_without_the_protocol(random_model):
    ready, *runs, done = serve_lines("ember_engine", on(random_model), GREEDY, GREEDY, LOOP)
    engine = Engine(load_decoder(random_model), capacity=16)
    [[completion]] = engine.generate([[1, 2, 3, 4]], SamplingParams(max_tokens=6))
    assert (ready["event"], done["event"]) == ("ready", "done")
    assert ready["attention"].startswith("own, ")
    for run in runs[:2]:
        assert run["tokens"] == [[list(completion.tokens)]]
        assert run["total_s"] > 0
    assert [[len(one) for one in found] for found in runs[2]["tokens"]] == [[4] * 3] * 2
    assert len({tuple(one) for found in runs[2]["tokens"] for one in found}) > 1


@pytest.mark.parametrize("arguments", [{}, {"cache": "static", "compile": False}])
def test_transformers_runs_both_workloads(random_model, arguments):
    setup = on(random_model) | {"arguments": arguments}
    ready, greedy, again, loop, _ = serve_lines(
        "transformers_generate", setup, GREEDY, GREEDY, LOOP
    )
    assert ready["attention"] == "sdpa"
    assert greedy["tokens"] == again["tokens"]
    assert [[len(one) for one in found] for found in loop["tokens"]] == [[4] * 3] * 2
    assert len({tuple(one) for one in loop["tokens"][0]}) > 1, "candidates are drawn"


@pytest.mark.slow
def test_two_stages_give_the_engines_tokens(random_model):
    found = []
    for adapter in ("ember_engine", "ember_pipeline"):
        with Peer(adapter, None, on(random_model) | {"threads": 2}, timeout_s=120) as stages:
            stages.start()
            found.append(stages.generate([[1, 2, 3, 4]], 6)["tokens"])
            stages.generate([[1, 2, 3], [4, 5, 6]], 4, candidates=2, temperature=1.0)
    assert found[0] == found[1]


def test_two_stages_without_two_devices_are_missing(monkeypatch):
    from ember.pipeline import pipeline

    monkeypatch.setattr(pipeline, "why_no_stages", lambda device: "two stages need two GPUs")
    answered = io.StringIO()
    asked = io.StringIO(json.dumps(SETUP | {"device": "cuda"}) + "\n")
    assert serve.main(["ember_pipeline"], asked, answered) == 1
    answer = json.loads(answered.getvalue())
    assert answer["missing"] is True
    assert "two stages need two GPUs" in answer["reason"]


def test_a_probe_only_imports():
    answered = io.StringIO()
    asked = io.StringIO(json.dumps({"threads": 1, "arguments": {}, "probe": True}) + "\n")
    assert serve.main(["ember_engine"], asked, answered) == 0
    assert json.loads(answered.getvalue())["event"] == "ready"


@pytest.mark.parametrize("adapter", ["vllm_offline", "sglang_offline", "kvpress_stream"])
def test_what_is_not_installed_says_so(adapter, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, adapter.split("_")[0], None)
    answered = io.StringIO()
    assert serve.main([adapter], io.StringIO(json.dumps(SETUP) + "\n"), answered) == 1
    answer = json.loads(answered.getvalue())
    assert answer["missing"] is True
    assert "ModuleNotFoundError" in answer["reason"]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [*sorted(set(ADAPTERS) - {"ember_engine", "ember_pipeline"}), "serve"]
)
def test_what_runs_elsewhere_imports_nothing_of_this_project(name):
    file = Path(serve.__file__) if name == "serve" else serve.FOLDER / f"{name}.py"
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "numpy"}
    allowed |= {"kvpress", "llama_cpp", "sglang", "vllm"}
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        assert {module.split(".")[0] for module in names} <= allowed
    assert not os.path.exists(serve.FOLDER / "llama_cpp.py"), "it would shadow the package"
