"""In what order tests run, and the files that run under Triton's interpreter.

Quick tests come first. Then the first test that needs a finished run of the workflow makes it, and
another process (pytest-xdist) meanwhile goes through the slow tests that do without.

Kernels run on the CPU in Triton's interpreter, minutes of one core, in processes of their own:
whether Triton interprets is settled when it is imported. A test with the fixture `interpreted` gets
the result of such a process:

    @pytest.mark.parametrize("interpreted", ["interpreted_this.py"], indirect=True)
    def test_kernels(interpreted):
        assert interpreted.returncode == 0, interpreted.stdout
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

QUICK, FIRST_FINISHED, SLOW, FINISHED = range(4)


def pytest_collection_modifyitems(items):
    items.sort(key=_turn)
    first = next((item for item in items if _turn(item) == FINISHED), None)
    items.sort(key=lambda item: FIRST_FINISHED if item is first else _turn(item))


def _turn(item) -> int:
    if "finished" in item.fixturenames:
        return FINISHED
    slow = item.get_closest_marker("slow") is not None or "interpreted" in item.fixturenames
    return SLOW if slow else QUICK


def pytest_runtest_setup(item):
    """What a test draws without a seed of its own does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def interpreted(request) -> subprocess.CompletedProcess:
    """What a file of tests gave under Triton's interpreter."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed here")
    file = request.path.parent / request.param
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        [*command, "--import-mode=importlib", "--noconftest", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """A directory that declares random weights: two layers, vocabulary of 97."""
    from tests.tiny import declared  # not every test needs torch

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "vocab_size": 97}
    folder = tmp_path_factory.mktemp("random-model")
    return declared(folder, **sizes, max_positions=256, tie_embeddings=True)
