"""Memory limits of containers count, and a job that does not fit is refused with both numbers."""

import psutil
import pytest

from ember.measure import memory
from ember.measure.memory import (
    NotEnoughMemory,
    available_bytes,
    require,
    total_bytes,
)


def test_what_is_available_is_part_of_what_there_is():
    assert 0 < available_bytes("cpu") <= psutil.virtual_memory().total
    assert available_bytes("cpu") <= total_bytes() <= psutil.virtual_memory().total


def test_require():
    require(1, "cpu", "a byte")
    with pytest.raises(NotEnoughMemory) as caught:
        require(10**18, "cpu", "the KV cache")
    cause, remedy = str(caught.value).splitlines()
    assert cause.startswith("the KV cache needs about 1000000000.00 GB on cpu, ")
    assert cause.endswith("GB are available")
    assert "smaller scale" in remedy


def test_require_compares_with_what_is_available(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100)
    require(100, "cpu", "it")
    with pytest.raises(NotEnoughMemory):
        require(101, "cpu", "it")


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_cgroup_v2(tmp_path):
    write(
        tmp_path,
        memory_DOT_max="1000\n",
        memory_DOT_current="700\n",
        memory_DOT_stat="anon 500\ninactive_file 150\n",
    )
    assert memory._cgroup_limit(tmp_path) == 1000
    assert memory._cgroup_free(tmp_path) == 450


def test_cgroup_v1(tmp_path):
    write(
        tmp_path,
        memory__memory_DOT_limit_in_bytes="1000",
        memory__memory_DOT_usage_in_bytes="900",
        memory__memory_DOT_stat="inactive_file 1\ntotal_inactive_file 50\n",
    )
    assert memory._cgroup_free(tmp_path) == 150


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_cgroup_limit(tmp_path, limit):
    name = "memory_DOT_max" if limit == "max" else "memory__memory_DOT_limit_in_bytes"
    write(tmp_path, **{name: limit})
    assert memory._cgroup_limit(tmp_path) is None
    assert memory._cgroup_free(tmp_path) is None


def test_a_container_has_less_than_its_machine(monkeypatch):
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: 12345)
    monkeypatch.setattr(memory, "_cgroup_free", lambda: 123)
    assert total_bytes() == 12345
    assert available_bytes("cpu") == 123


def test_cuda(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert available_bytes("cuda") == 130
