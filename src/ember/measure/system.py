"""The machine and the versions that a measurement was made with.

Machines are described, not named: CPU, cores, memory, GPUs, operating system, and on a cluster the
node. No torch.
"""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

from ember.measure.memory import total_bytes
from ember.records.provenance import versions as versions

_NVIDIA_SMI = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version",
    "--format=csv,noheader,nounits",
]


@lru_cache(maxsize=1)
def _hardware() -> dict:
    import psutil

    facts = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_machine": psutil.cpu_count(logical=True),
        "memory_bytes": total_bytes(),
        "gpus": gpus(),
        "os": _operating_system(),
    }
    node = os.environ.get("SLURMD_NODENAME")
    return facts | ({"node": node} if node else {})


def hardware() -> dict:
    """CPU model, usable cores, memory in bytes, GPUs with driver, operating system."""
    return dict(_hardware())


def gpus() -> list[dict]:
    """The NVIDIA GPUs the driver reports: name, memory_bytes, driver. Empty without a driver."""
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(text: str) -> list[dict]:
    """GPUs from nvidia-smi's lines "name, MiB, driver"; a memory it does not know is None."""
    found = []
    for line in filter(str.strip, text.splitlines()):
        name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
        size = int(memory) * 2**20 if memory.isdigit() else None
        found.append({"name": name, "memory_bytes": size, "driver": driver})
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}"
