"""Quick tests first; Triton's interpreter works beside them.

Kernels run on the CPU in Triton's interpreter, minutes of one core, in processes of their own:
whether Triton interprets is settled when it is imported. A test with the fixture `interpreted` gets
the result of such a process, which starts with the session:

    @pytest.mark.parametrize("interpreted", ["interpreted_this.py"], indirect=True)
    def test_kernels(interpreted):
        assert interpreted.returncode == 0, interpreted.stdout
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

import pytest

_results: dict[Path, Future] = {}
_running: list[subprocess.Popen] = []
_stopped = threading.Event()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, _file(item) or ""))


def pytest_collection_finish(session):
    """Starts the interpreter's processes one after another, in the order in which they are due."""
    files = dict.fromkeys(file for item in session.items if (file := _file(item)))
    if not files or session.config.option.collectonly or find_spec("triton") is None:
        return
    _results.update({Path(file): Future() for file in files})
    threading.Thread(target=_work, daemon=True).start()


def pytest_sessionfinish():
    _stopped.set()
    for process in _running:
        process.kill()


@pytest.fixture
def interpreted(request) -> subprocess.CompletedProcess:
    """What a file of tests gave under Triton's interpreter."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed here")
    return _results[request.path.parent / request.param].result()


def _file(item) -> str | None:
    """The file of the item's interpreted tests, if it has any."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    name = parameters.get("interpreted")
    return str(item.path.parent / name) if name else None


def _work() -> None:
    for file, result in _results.items():
        if _stopped.is_set():
            return
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
        process = subprocess.Popen(
            [*command, "--import-mode=importlib", "--noconftest"],
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        _running.append(process)
        output, _ = process.communicate()
        result.set_result(subprocess.CompletedProcess(command, process.returncode, output[-4000:]))
