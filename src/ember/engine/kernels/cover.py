"""Which decoders and caches the kernels serve. Imports no Triton, so that asking is cheap."""

import importlib.util
import os

import torch

from ember.cache.contiguous import ContiguousCache
from ember.engine.packing import why_unpacked
from ember.model.architecture import Architecture

ROWS = 256  # the most rows of a batch that was measured
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not(arch: Architecture, cache: ContiguousCache) -> str | None:
    """Why a step over this cache must use plain operators, or None if the kernels serve it."""
    if (reason := why_unpacked(arch)) is not None:
        return reason
    if not cache.kv.is_cuda and not interpreted():
        return "the cache is not on a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if cache.kv.is_cuda and torch.cuda.get_device_capability(cache.kv.device) < (8, 0):
        return "the device is older than compute capability 8.0"
    if cache.kv.dtype not in DTYPES:
        return f"there are no kernels for {cache.kv.dtype}"
    if cache.batch > ROWS:
        return f"a batch of {cache.batch} rows is above {ROWS}"
    if arch.head_dim not in (32, 64, 128, 256):
        return f"a head dimension of {arch.head_dim} is not 32, 64, 128 or 256"
    if arch.groups > 16:
        return f"{arch.groups} query heads share a KV head, more than 16"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as the tests ask it to."""
    return os.environ.get("TRITON_INTERPRET") == "1"
