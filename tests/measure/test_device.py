"""Devices are resolved or refused with the remedy."""

import pytest
import torch

from ember.measure.device import NoDevice, resolve, synchronize


def no_gpu(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_the_cpu_is_always_there():
    assert resolve("cpu") == "cpu"
    assert synchronize("cpu") is None


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "mps", "", "cpu:0", "CUDA"])
def test_unknown_devices(device):
    with pytest.raises(NoDevice, match=r"unknown device .*\nchoose cpu, cuda, cuda:N or auto"):
        resolve(device)


def test_cuda_where_there_is_none(monkeypatch):
    no_gpu(monkeypatch, None)
    with pytest.raises(NoDevice, match="built for the CPU\ninstall a CUDA build"):
        resolve("cuda")
    no_gpu(monkeypatch, "13.0")
    with pytest.raises(NoDevice, match="no CUDA device is visible\nrun on a machine with a GPU"):
        resolve("cuda:0")


def test_cuda_where_there_is_some(monkeypatch):
    gpus(monkeypatch, 2)
    assert resolve("cuda") == "cuda"
    assert resolve("cuda:1") == "cuda:1"
    with pytest.raises(NoDevice, match="cuda:2 is asked for, but there are 2"):
        resolve("cuda:2")


def test_auto_takes_what_is_there(monkeypatch):
    gpus(monkeypatch, 1)
    assert resolve("auto") == "cuda"
    gpus(monkeypatch, 0)
    assert resolve("auto") == "cpu"
