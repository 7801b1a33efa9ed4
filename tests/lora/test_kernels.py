"""The merging kernel, in a process of its own: Triton is told at import to interpret."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ember.lora.merge import Merger, kernels_serve
from tests.lora.tiny import tiny_decoder

HERE = Path(__file__).parent


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed here"
)
def test_the_kernel_equals_plain_operators():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--import-mode=importlib", str(HERE / "interpreted_merge.py")),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_without_cuda_plain_operators_serve():
    decoder = tiny_decoder()
    assert not kernels_serve(decoder)
    assert not Merger(decoder).uses_kernels
