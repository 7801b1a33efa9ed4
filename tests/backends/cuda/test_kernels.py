"""Every kernel against plain PyTorch, on the CPU, and which cases the kernels serve."""

import importlib.util

import pytest
import torch

from ember.backends.cuda import cover
from ember.cache.contiguous import ContiguousCache
from ember.engine.step import DecodeStep
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 67,
    "max_positions": 64,
}


@pytest.mark.parametrize(
    "interpreted",
    [f"kernels/interpreted_{part}.py" for part in ("products", "attention", "sampling", "step")],
    indirect=True,
)
def test_kernels_equal_plain_operators(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout


def test_without_cuda_the_step_has_no_kernels():
    decoder = random_decoder(Architecture.make(model_type="qwen3", **SIZES), seed=0)
    cache = ContiguousCache(decoder.arch, 1, 8)
    assert cover.why_not(decoder.arch, cache.kv, 1) == "the cache is not on a CUDA device"
    assert DecodeStep(decoder, cache).loop is None


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed here"
)
@pytest.mark.parametrize(
    ("fields", "batch", "dtype", "reason"),
    [
        ({}, 1, torch.bfloat16, None),
        ({"model_type": "qwen2"}, 1024, torch.float32, None),
        ({"model_type": "llama"}, 1025, torch.bfloat16, "1025 rows is above 1024"),
        ({"head_dim": 48}, 1, torch.bfloat16, "head dimension of 48"),
        ({"num_heads": 64, "num_kv_heads": 2}, 1, torch.bfloat16, "32 query heads share"),
        ({}, 1, torch.float64, "no kernels for torch.float64"),
    ],
)
def test_which_cases_the_kernels_serve(fields, batch, dtype, reason, monkeypatch):
    monkeypatch.setattr(cover, "interpreted", lambda: True)  # as if there were a device
    arch = Architecture.make(**{"model_type": "qwen3"} | SIZES | fields)
    found = cover.why_not(arch, torch.empty(1, dtype=dtype), batch)
    assert found is None if reason is None else reason in found


def test_without_triton_plain_operators_serve(monkeypatch):
    monkeypatch.setattr(cover, "interpreted", lambda: True)
    monkeypatch.setattr(cover.importlib.util, "find_spec", lambda name: None)
    decoder = random_decoder(Architecture.make(model_type="qwen3", **SIZES), seed=0)
    cache = ContiguousCache(decoder.arch, 1, 8)
    assert cover.why_not(decoder.arch, cache.kv, 1) == "Triton is not installed"
    assert DecodeStep(decoder, cache).loop is None
