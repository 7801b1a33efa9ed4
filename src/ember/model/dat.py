"""TorchSharp's `.dat` checkpoints (L-3.1), with its element types of packed 4-bit weights.

Contract. A file is the number of entries and, entry by entry, the name's length in characters, the
name in UTF-8, element type, number of dimensions, dimensions, raw little-endian bytes; numbers are
LEB128. Beside torch's codes there are 100 (a byte of two FP4 codes) and 101 (an E4M3 scale), whose
dimensions count stored bytes. Files come from strangers: everything is checked against the bytes
that are there before anything is allocated, and what is wrong is a `BadDat` that names the entry.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ember.records.atomic import atomic_file
from ember.records.errors import EmberError
from ember.records.foreign import check_regular, shown

FP4_BYTE, E4M3_BYTE = 100, 101
TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
    FP4_BYTE: torch.uint8,
    E4M3_BYTE: torch.float8_e4m3fn,  # as integers or halves these scales would be plausible noise
}
SIZES = {code: dtype.itemsize for code, dtype in TYPES.items()}
CODES = {dtype: code for code, dtype in TYPES.items() if code != FP4_BYTE}
PACKED = "qdata"  # last part of the names whose bytes hold two codes
MAX_NAME, MAX_DIMS = 4096, 16
REMEDY = "Export it again, or get another copy."


class BadDat(EmberError):
    """A `.dat` file that is cut off or holds what the format does not know."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: element type (a key of TYPES), shape, and where its bytes begin."""

    type: int
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * SIZES[self.type]


def read_entries(content: bytes | mmap.mmap, where: str = "the file") -> dict[str, Entry]:
    """The entries of a file by name, from its bytes. Raises BadDat."""
    total = len(content)
    count, place = _number(content, 0, where, "the number of entries")
    if count > total // 3:  # each takes three bytes or more
        raise BadDat(f"{where} claims {count:,} entries in {total:,} bytes.\n{REMEDY}")
    entries: dict[str, Entry] = {}
    for index in range(count):
        name, place = _name(content, place, f"{where}: entry {index}")
        what = f"{where}: {shown(name)}"
        if name in entries:
            raise BadDat(f"{what} is there twice.\n{REMEDY}")
        code, place = _number(content, place, what, "its element type")
        if code not in TYPES:
            raise BadDat(
                f"{what} has element type {code}; known are {', '.join(map(str, TYPES))}.\n{REMEDY}"
            )
        ndim, place = _number(content, place, what, "its number of dimensions")
        if ndim > MAX_DIMS:
            raise BadDat(f"{what} has {ndim} dimensions, more than {MAX_DIMS}.\n{REMEDY}")
        shape, size = [], SIZES[code]
        for _ in range(ndim):
            dim, place = _number(content, place, what, "a dimension")
            shape.append(dim)
            size *= dim
        if 0 in shape and any(dim > total for dim in shape):  # no bytes to check the others by
            raise BadDat(f"{what} has the shape {shown(shape)}.\n{REMEDY}")
        if size > total - place:
            raise BadDat(
                f"{what} claims {size:,} bytes for its shape {shown(shape)}, and {total - place:,} "
                f"are left: the file is cut off, or is none of this kind.\n{REMEDY}"
            )
        entries[name] = Entry(code, tuple(shape), place)
        place += size
    if place != total:
        raise BadDat(f"{where} has {total - place:,} bytes after its last entry.\n{REMEDY}")
    return entries


def read_dat(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, as views of it: what is not touched is not read.

    Bytes of type 100 come as uint8, scales of type 101 as float8_e4m3fn. Raises BadDat.
    """
    path = Path(path)
    check_regular(path, BadDat, REMEDY)
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise BadDat(f"{path} is empty.\n{REMEDY}")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # a view may be written to
    return {
        name: _tensor(content, entry) for name, entry in read_entries(content, str(path)).items()
    }


def write_dat(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name, one after another, as TorchSharp's exporter lays them out.

    uint8 under a name that ends in `qdata` is of type 100, float8_e4m3fn of type 101. Raises BadDat
    for a tensor that the format cannot hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise BadDat(f"{shown(name)} is {tensor.dtype}.\nConvert it before it is written.")
        if not 0 < len(name) <= MAX_NAME or tensor.ndim > MAX_DIMS:
            raise BadDat(f"{shown(name)}: names have 1 to {MAX_NAME} characters.\nRename it.")
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(_leb128(len(tensors)))
        for name, tensor in tensors.items():
            code = CODES[tensor.dtype]
            if code == 0 and name.rpartition(".")[2] == PACKED:
                code = FP4_BYTE
            header = (len(name), name.encode(), code, tensor.ndim, *tensor.shape)
            file.writelines(p if isinstance(p, bytes) else _leb128(p) for p in header)
            # A reshape first: a tensor without dimensions cannot be viewed as bytes.
            stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(memoryview(stored.numpy()))


def _tensor(content: mmap.mmap, entry: Entry) -> Tensor:
    dtype = TYPES[entry.type]
    if not entry.bytes:
        return torch.empty(entry.shape, dtype=dtype)
    raw = torch.frombuffer(content, dtype=torch.uint8, count=entry.bytes, offset=entry.offset)
    if entry.offset % dtype.itemsize:  # torch wants its elements aligned
        raw = raw.clone()
    return raw.view(dtype).view(entry.shape)


def _number(content, place: int, where: str, what: str) -> tuple[int, int]:
    """A LEB128 number below 2**63, and the place after it."""
    value, shift = 0, 0
    while shift < 63:
        if place >= len(content):
            raise BadDat(f"{where} ends within {what}: it is cut off.\n{REMEDY}")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise BadDat(f"{where}: {what} is above 2^63.\n{REMEDY}")


def _name(content, place: int, where: str) -> tuple[str, int]:
    """A name by its number of characters, and the place after it."""
    length, place = _number(content, place, where, "the length of its name")
    if not 0 < length <= MAX_NAME:
        raise BadDat(f"{where} has a name of {length:,} characters.\n{REMEDY}")
    stop = place
    for _ in range(length):
        if stop >= len(content):
            raise BadDat(f"{where} ends within its name: it is cut off.\n{REMEDY}")
        first = content[stop]
        stop += 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    try:
        name = content[place:stop].decode()
    except UnicodeDecodeError:
        name = ""
    if len(name) != length:
        raise BadDat(f"{where} has a name that is not UTF-8.\n{REMEDY}")
    return name, stop


def _leb128(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
