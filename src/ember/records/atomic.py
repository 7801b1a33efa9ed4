"""Files and directories that are there completely or not at all.

A product is written beside its final place, flushed to disk and renamed. An exception (Ctrl-C
included) leaves what was there before; what a killed process leaves behind is a hidden temporary
that the next writer of the same product removes. No third-party imports.
"""

import errno
import itertools
import json
import os
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ember.records.errors import CannotWrite, EmberError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_SAYS_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NO_ROOM = 2**16  # free bytes below which a failed write is taken for a full disk
_TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})-(\d+)-\d+\.tmp")
_count = itertools.count()
_active: set[Path] = set()


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A temporary path with the ending of `path`, renamed to `path` when the block succeeds.

    A link stays, and the file it names is written. Raises `CannotWrite` where `path` is something
    else than a file (a device, a directory), the folder cannot be written to or the disk is full.
    """
    ending, path = Path(path).suffix, _target(Path(path), stat.S_ISREG, "file")
    with _temporary(path, ending) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """An empty temporary directory that takes the place of `path` when the block succeeds.

    A directory that is replaced is out of place for the moment between two renames; a process
    killed just then leaves no `path`, which the workflow takes for a product to be made again. A
    link stays. Raises `CannotWrite` as `atomic_file` does.
    """
    path = _target(Path(path), stat.S_ISDIR, "directory")
    with _temporary(path, path.suffix) as temporary:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if not file.is_symlink():
                _flush(file)
        _flush(temporary)
        retired = temporary.with_name(temporary.name + ".old")
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        _remove(retired)
        _flush(path.parent)


def write_text(path: Path | str, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: Path | str, data) -> Path:
    """Write `data` as indented JSON, atomically. NaN and infinity are refused (`ValueError`)."""
    return write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _target(path: Path, is_kind: Callable[[int], bool], kind: str) -> Path:
    """Where to write: `path`, or what it links to. Only a `kind` is ever replaced."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CannotWrite(f"cannot write {path}: {error.strerror}\ngive another path") from None
        mode = None  # nothing there, or a link to nothing; whoever writes sees what else is wrong
    if mode is not None and not is_kind(mode):
        kinds = {stat.S_ISDIR: "a directory", stat.S_ISREG: "a file"}
        what = next((name for test, name in kinds.items() if test(mode)), "a device or a pipe")
        raise CannotWrite(f"cannot write {path}: it is {what}, not a {kind}\ngive another path")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def _temporary(path: Path, ending: str) -> Iterator[Path]:
    """A name beside `path` that nobody uses, removed at the end; write errors explained."""
    prefix = f".{path.stem}.{_machine()}-"
    temporary = path.parent / f"{prefix}{os.getpid()}-{next(_count)}.tmp{ending}"
    _active.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent, prefix, ending)
        yield temporary
    except EmberError:
        raise
    except Exception as error:
        cause = _cause(error, temporary)
        if cause is None:
            raise
        raise CannotWrite(
            f"cannot write {path}: {cause}\n"
            "free space, fix the folder's permissions, or work elsewhere with --directory"
        ) from error
    finally:
        _active.discard(temporary)
        _remove(temporary)


def _cause(error: Exception, temporary: Path) -> str | None:
    """Why nothing could be written here; None for an error about something else.

    The writers of torch, safetensors, tokenizers and gguf report a full disk by exceptions of their
    own, some without a word about it.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror if _concerns(error, temporary) else None
    for words in _SAYS_FULL:
        if words in str(error):
            return words
    try:
        disk = os.statvfs(temporary.parent)
    except OSError:
        return None
    return _SAYS_FULL[0] if disk.f_bavail * disk.f_frsize < _NO_ROOM else None


def _concerns(error: OSError, temporary: Path) -> bool:
    """Whether the error is about writing here; a block may also fail to read something else."""
    if error.filename is None:
        return error.errno in _FULL
    name = Path(os.fsdecode(error.filename))
    return name == temporary or name in temporary.parents or temporary in name.parents


def _clear(folder: Path, prefix: str, ending: str) -> None:
    """Remove what killed writers of the same product on this machine left."""
    for left in folder.iterdir():
        if left.name.startswith(prefix) and f".tmp{ending}" in left.name:
            process, alive = writer(left.name) or (0, True)
            if left not in _active if process == os.getpid() else not alive:
                _remove(left)


def writer(name: str) -> tuple[int, bool | None] | None:
    """The process that writes to a temporary of this name, and whether it still runs.

    None for whether it runs: it is on another machine. None in all: not such a name.
    """
    if not (match := _TEMPORARY.match(name)):
        return None
    process = int(match[2])
    return process, (_alive(process) if match[1] == _machine() else None)


def _machine() -> str:
    # A short code, not the machine's name: products are copied around.
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink()
    except OSError:  # never there, or in a folder that cannot be written to
        return


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
