"""Files in and out of the system's page cache, and how much of a file is in it (Linux).

`drop` asks the kernel to forget a file's pages; whether it did is what `resident_share` says. Where
the system does not tell (no mincore, or a file system that answers for others), that is None.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_BLOCK = 8 << 20


def drop(files: Iterable[Path | str]) -> None:
    """Write the files' pages back and ask the kernel to forget them."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not written yet cannot be forgotten
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_through(files: Iterable[Path | str]) -> int:
    """Read the files from end to end; bytes read. Afterwards they are in the page cache."""
    buffer, total = bytearray(_BLOCK), 0
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total


def resident_share(files: Iterable[Path | str]) -> float | None:
    """Share of the files' pages that are in memory; None where the system does not tell."""
    pages = resident = 0
    for file in files:
        found = _resident_pages(Path(file))
        if found is None:
            return None
        resident, pages = resident + found[0], pages + found[1]
    return resident / pages if pages else None


def _resident_pages(file: Path) -> tuple[int, int] | None:
    """Pages of a file in memory, and all of them."""
    size = file.stat().st_size
    if size == 0:
        return 0, 0
    count = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return None
    with file.open("rb") as stream:
        # Private and writable, because only then does ctypes give the address; nothing is written.
        memory = mmap.mmap(
            stream.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        )
    try:
        start = ctypes.c_char.from_buffer(memory)
        found = (ctypes.c_ubyte * count)()
        address, length = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size)
        failed = libc.mincore(address, length, found)
        del start  # or the map could not be closed
        return None if failed else (sum(byte & 1 for byte in found), count)
    finally:
        memory.close()
