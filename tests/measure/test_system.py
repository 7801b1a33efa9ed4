"""The machine is described, and described the same way everywhere."""

import json
import os
import subprocess
import sys

import pytest

from ember.measure import system
from ember.measure.system import gpus, hardware, parse_gpus, versions


def test_hardware_is_plain_data_about_this_machine():
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert 1 <= found["cores"] <= found["cores_machine"]
    assert found["memory_bytes"] > 10**8
    assert isinstance(found["gpus"], list)


def test_the_description_does_not_name_the_host():
    assert os.uname().nodename not in json.dumps(hardware()).split('"')


def test_the_node_of_a_cluster_is_named(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    system._hardware.cache_clear()
    assert hardware()["node"] == "node7"
    system._hardware.cache_clear()


def test_what_the_caller_changes_stays_with_the_caller():
    hardware()["cpu"] = "changed"
    assert hardware()["cpu"] != "changed"


def test_gpus_are_parsed():
    text = "NVIDIA H200, 143771, 570.86.15\nOdd, Name, [N/A], 1.2\n\n"
    assert parse_gpus(text) == [
        {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "driver": "570.86.15"},
        {"name": "Odd, Name", "memory_bytes": None, "driver": "1.2"},
    ]


@pytest.mark.parametrize("status", [0, 9])
def test_the_driver_is_asked(tmp_path, monkeypatch, status):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'NVIDIA H200, 1, 570'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(gpus()) == (1 if status == 0 else 0)


def test_no_driver(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus() == []


def test_versions():
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "numpy" in versions()


def test_describing_the_machine_does_not_import_torch():
    command = (
        "import sys; from ember.measure import system, clock, device, memory, roofline; "
        "system.hardware(); print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
