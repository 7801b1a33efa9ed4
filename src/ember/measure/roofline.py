"""What the memory and the arithmetic units of a device reach, to judge an engine's speed by.

Every figure is measured where it is asked for. Buffers are far larger than the caches (an H200
holds 60 MB in its L2), or the cache's speed would be reported.
"""

from pathlib import Path
from statistics import median

from ember.measure.clock import repeat
from ember.measure.memory import require

_BUFFER = {"cpu": 2**28, "cuda": 2**31}  # bytes
_SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices


def copy_bandwidth_gb_s(device: str, *, buffer_bytes: int | None = None, repeats: int = 7) -> float:
    """GB/s (1e9 bytes) of a copy within the device; bytes read and bytes written both count."""
    import torch

    size = buffer_bytes or _BUFFER[_kind(device)]
    require(2 * size, device, "measuring the copy bandwidth")
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = repeat(lambda: target.copy_(source), warmup=2, repeats=repeats, device=device)
    return 2 * source.nbytes / _seconds(times) / 1e9


def read_bandwidth_gb_s(device: str, *, buffer_bytes: int | None = None, repeats: int = 7) -> float:
    """GB/s (1e9 bytes) of reading a buffer once (a sum)."""
    import torch

    size = buffer_bytes or _BUFFER[_kind(device)]
    require(size, device, "measuring the read bandwidth")
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    times = repeat(source.sum, warmup=2, repeats=repeats, device=device)
    return source.nbytes / _seconds(times) / 1e9


def matvec_bandwidth_gb_s(
    device: str, *, buffer_bytes: int | None = None, repeats: int = 7
) -> float:
    """GB/s (1e9 bytes) of reading a matrix once, in its product with a vector.

    On some CPUs it reads faster than a sum does.
    """
    import torch

    size = buffer_bytes or _BUFFER[_kind(device)]
    require(size, device, "measuring the read bandwidth")
    matrix = torch.ones(size // 4, dtype=torch.float32, device=device).view(-1, 1024)
    vector = torch.ones(1024, dtype=torch.float32, device=device)
    out = torch.empty(len(matrix), dtype=torch.float32, device=device)
    call = lambda: torch.mv(matrix, vector, out=out)  # noqa: E731
    times = repeat(call, warmup=2, repeats=repeats, device=device)
    return matrix.nbytes / _seconds(times) / 1e9


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
    return 2 * side**3 / _seconds(times) / 1e12


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


def _seconds(times_ms: list[float]) -> float:
    return median(times_ms) / 1e3


def _kind(device: str) -> str:
    return device.partition(":")[0]
