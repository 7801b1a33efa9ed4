"""How much memory there is, and whether a job fits before it starts.

Bytes throughout; messages in GB (1e9 bytes). A container's or a cluster job's memory limit (cgroup)
counts, not only what the machine has.
"""

from pathlib import Path

from ember.records.errors import EmberError

_CGROUP = Path("/sys/fs/cgroup")
# cgroup v1 writes a number near 2**63 for "no limit".
_NO_LIMIT = 2**60


class NotEnoughMemory(EmberError):
    """A job that would not fit; the message says how much it needs and how much there is."""


def available_bytes(device: str = "cpu") -> int:
    """Bytes that can still be allocated on the device without swapping or failing."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached

    import psutil

    available = psutil.virtual_memory().available
    limit = _cgroup_free()
    return available if limit is None else min(available, limit)


def total_bytes() -> int:
    """Main memory of the machine, or of the container or cluster job if that has less."""
    import psutil

    total = psutil.virtual_memory().total
    limit = _cgroup_limit()
    return total if limit is None else min(total, limit)


def forget_peak(device: str) -> None:
    """From now on `peak_gb` counts anew."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: str) -> float | None:
    """The most GB that tensors took on the device since `forget_peak`; None on a CPU, whose
    allocator does not count (see `ember.measure.live`)."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e9


def require(needed: int, device: str, what: str) -> None:
    """Raise `NotEnoughMemory` if `what` needs more bytes than the device has free."""
    available = available_bytes(device)
    if needed > available:
        raise NotEnoughMemory(
            f"{what} needs about {needed / 1e9:.2f} GB on {device}, "
            f"{available / 1e9:.2f} GB are available\n"
            "use a smaller scale, shorter contexts, fewer candidates or a narrower dtype, "
            "or run where there is more memory"
        )


def _cgroup_limit(root: Path = _CGROUP) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _number(root / name)
        if limit is not None:
            return limit if limit < _NO_LIMIT else None
    return None


def _cgroup_free(root: Path = _CGROUP) -> int | None:
    limit = _cgroup_limit(root)
    if limit is None:
        return None
    for usage, stat in (
        ("memory.current", "memory.stat"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        used = _number(root / usage)
        if used is not None:
            # Cached files are given up under pressure: they are not in the way.
            return max(0, limit - used + _inactive_file(root / stat))
    return limit


def _inactive_file(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(None, 1) for line in lines if " " in line)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
