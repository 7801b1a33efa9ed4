"""What the memory and the arithmetic units of a device reach, to judge an engine's speed by.

Every figure is measured where it is asked for. Buffers are far larger than the caches (an H200
holds 60 MB in its L2), or the cache's speed would be reported.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from ember.measure.clock import repeat
from ember.measure.memory import require

_BUFFER = {"cpu": 2**28, "cuda": 2**31}  # bytes
_SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices


def copy_bandwidth_gb_s(device: str, *, buffer_bytes: int | None = None, repeats: int = 7) -> float:
    """GB/s (1e9 bytes) of a copy within the device; bytes read and bytes written both count."""
    source = _buffer(device, buffer_bytes, "copy", 2)
    target = source.clone()
    return _gb_s(lambda: target.copy_(source), 2 * source.nbytes, device, repeats)


def read_bandwidth_gb_s(device: str, *, buffer_bytes: int | None = None, repeats: int = 7) -> float:
    """GB/s (1e9 bytes) of reading a buffer once (a sum)."""
    source = _buffer(device, buffer_bytes, "read")
    return _gb_s(source.sum, source.nbytes, device, repeats)


def matvec_bandwidth_gb_s(
    device: str, *, buffer_bytes: int | None = None, repeats: int = 7
) -> float:
    """GB/s (1e9 bytes) of reading a matrix once, in its product with a vector.

    On some machines it reads faster than a sum does.
    """
    import torch

    matrix = _buffer(device, buffer_bytes, "read").view(-1, 1024)
    vector, out = matrix.new_ones(1024), matrix.new_empty(len(matrix))
    call = partial(torch.mv, matrix, vector, out=out)
    return _gb_s(call, matrix.nbytes, device, repeats)


def best_read_gb_s(device: str, *, repeats: int = 7) -> float:
    """GB/s (1e9 bytes) of whichever reads faster, a sum or a product with a vector."""
    ways = (read_bandwidth_gb_s, matvec_bandwidth_gb_s)
    return max(measure(device, repeats=repeats) for measure in ways)


def matmul_tflops(
    device: str, dtype: str = "float32", *, side: int | None = None, repeats: int = 7
) -> float:
    """TFLOP/s (1e12 multiplications and additions) of a product of two square matrices."""
    import torch

    side = side or _SIDE[_kind(device)]
    kind = getattr(torch, dtype)
    require(3 * side * side * kind.itemsize, device, "measuring the matrix product")
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(side, side, device=device, generator=generator).to(kind) for _ in range(2)
    )
    out = torch.empty_like(left)
    times = repeat(lambda: torch.mm(left, right, out=out), warmup=2, repeats=repeats, device=device)
    return 2 * side**3 / median(times) / 1e9


def last_cache_bytes(device: str) -> int | None:
    """Bytes of the last cache before the device's memory; None where the system does not tell."""
    if _kind(device) == "cuda":
        import torch

        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KMG":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=None)


def _buffer(device: str, size: int | None, what: str, copies: int = 1):
    """Ones of float32, after it is sure that so many of such buffers fit."""
    import torch

    size = size or _BUFFER[_kind(device)]
    require(copies * size, device, f"measuring the {what} bandwidth")
    return torch.ones(size // 4, dtype=torch.float32, device=device)


def _gb_s(call: Callable[[], object], size: int, device: str, repeats: int) -> float:
    times = repeat(call, warmup=2, repeats=repeats, device=device)
    return size / median(times) / 1e6


def _kind(device: str) -> str:
    return device.partition(":")[0]
