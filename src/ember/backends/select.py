"""Which decoders and caches the kernels serve. Imports no Triton, so that asking is cheap."""

import importlib.util
import os

import torch
from torch import Tensor

from ember.backends.packing import why_unpacked
from ember.model.architecture import Architecture

ROWS = 1024  # the most rows of a batch
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not(arch: Architecture, memory: Tensor, rows: int) -> str | None:
    """Why a step over such a cache's memory must use plain operators; None if the kernels serve."""
    if (reason := why_unpacked(arch)) is not None:
        return reason
    if not memory.is_cuda and not interpreted():
        return "the cache is not on a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if memory.is_cuda and torch.cuda.get_device_capability(memory.device) < (8, 0):
        return "the device is older than compute capability 8.0"
    if memory.dtype not in DTYPES:
        return f"there are no kernels for {memory.dtype}"
    if rows > ROWS:
        return f"a batch of {rows} rows is above {ROWS}"
    if arch.head_dim not in (32, 64, 128, 256):
        return f"a head dimension of {arch.head_dim} is not 32, 64, 128 or 256"
    if arch.groups > 16:
        return f"{arch.groups} query heads share a KV head, more than 16"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as the tests ask it to."""
    return os.environ.get("TRITON_INTERPRET") == "1"
