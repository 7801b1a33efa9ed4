"""The kernel that quantises and packs in one pass equals the formats' own way, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ember.formats.base import FormatError

pytest.importorskip("triton")

from ember.formats.rows_kernel import quantise_rows, serves  # noqa: E402


def test_equals_the_composition_of_operators():
    """In a process of its own: the interpreter is chosen when the module is imported."""
    script = Path(__file__).with_name("interpreted_rows.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("size", "group"), [(9, 3), (16, 6), (16384, None)])
def test_refuses_groups_that_it_cannot_hold(size, group):
    with pytest.raises(FormatError, match="without the kernel"):
        quantise_rows(torch.zeros(2, size), 4, group)


def test_serves_no_cpu():
    assert not serves(torch.zeros(2, 8), 4, 8)
