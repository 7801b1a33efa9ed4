"""Files that others wrote, read as data: bounded, and checked value by value.

Contract. Nothing is believed of such a file: not that it is a file (a pipe would block, a device
never end), nor its size, nor that its JSON holds what the format says. `read_object` gives the
object of a JSON file as `Fields`, whose `get` returns a value of the type and within the bounds
that its caller names, or raises the caller's error: one line that names file, key and value, and
one with the remedy. No third-party imports.
"""

import json
import math
import os
import reprlib
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ember.records.errors import EmberError

MAX_BYTES = 64 << 20  # of a JSON file; the largest index of a published model has 5 MB
REQUIRED = object()

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
}


class Fields(Mapping):
    """An object of a foreign file; `where` names it in errors."""

    def __init__(self, content: Mapping, where: str, error: type[EmberError], remedy: str):
        self.content, self.where, self.error, self.remedy = content, where, error, remedy

    def __getitem__(self, key):
        return self.content[key]

    def __iter__(self) -> Iterator:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def get(
        self,
        key: str,
        kind: type,
        default=REQUIRED,
        *,
        low: float | None = None,
        high: float | None = None,
        choices: Collection | None = None,
    ) -> Any:
        """The value of `key`, of this kind and within these bounds; null is as if it were absent.

        A float may be written as a whole number; an object (dict) comes as `Fields`. Without a
        default the key must be there.
        """
        value = self.content.get(key)
        if value is None:
            if default is REQUIRED:
                raise self.bad(f"lacks {key!r}")
            return default
        return self._checked(key, value, kind, low, high, choices)

    def items_of(self, key: str, kind: type, **bounds) -> list | None:
        """The values of a list, each checked as `get` does; None if it is absent."""
        values = self.get(key, list, None)
        if values is None:
            return None
        bounds = {name: bounds.get(name) for name in ("low", "high", "choices")}
        return [self._checked(key, value, kind, **bounds) for value in values]

    def object(self, key: str) -> "Fields":
        """An object; an empty one where there is none."""
        empty = Fields({}, f"{self.where}: {shown(key)}", self.error, self.remedy)
        return self.get(key, dict, empty)

    def values_of(self, kind: type, **bounds) -> dict:
        """The object's own values, each checked as `get` does."""
        return {key: self.get(key, kind, **bounds) for key in self.content}

    def with_values(self, values: Mapping) -> "Fields":
        """The object with other values in the place of some of its own."""
        return Fields({**self.content, **values}, self.where, self.error, self.remedy)

    def bad(self, cause: str) -> EmberError:
        """The error that something here is wrong, to be raised."""
        return self.error(f"{self.where} {cause}.\n{self.remedy}")

    def _checked(self, key: str, value, kind: type, low, high, choices):
        right = (int, float) if kind is float else kind
        if not isinstance(value, right) or (isinstance(value, bool) and kind is not bool):
            raise self.bad(f"has {shown(key)} = {shown(value)}, which is not {_KINDS[kind]}")
        beyond = (low is not None and value < low) or (high is not None and value > high)
        if kind in (int, float) and (beyond or not abs(value) < 2**63):
            raise self.bad(f"has {shown(key)} = {shown(value)}, {_range(low, high)}")
        if choices is not None and value not in choices:
            names = ", ".join(map(str, choices))
            raise self.bad(f"has {shown(key)} = {shown(value)}, which is not one of {names}")
        if kind is dict:
            return Fields(value, f"{self.where}: {shown(key)}", self.error, self.remedy)
        return float(value) if kind is float else value


def read_object(path: Path, error: type[EmberError], remedy: str, limit: int = MAX_BYTES) -> Fields:
    """The object that a JSON file holds. Raises `error`."""
    content = read_bytes(path, error, remedy, limit)
    try:
        value = parse(content)
    except ValueError as fault:
        raise error(f"{path} is not valid JSON ({fault}).\n{remedy}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds {shown(value)}, which is not an object.\n{remedy}")
    return Fields(value, str(path), error, remedy)


def read_bytes(path: Path, error: type[EmberError], remedy: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `error`."""
    check_regular(path, error, remedy)
    try:
        with open(path, "rb", opener=_unblocked) as stream:
            if (size := os.fstat(stream.fileno()).st_size) <= limit:
                return stream.read(size)
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}.\n{remedy}") from None
    raise error(f"{path} has more than {limit:,} bytes.\n{remedy}")


def check_regular(path: Path, error: type[EmberError], remedy: str) -> None:
    """Raises `error` unless there is a regular file, or a link to one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error(f"{path} is missing.\n{remedy}") from None
    except (OSError, ValueError) as fault:  # a value error: a zero byte in the name
        cause = getattr(fault, "strerror", None) or fault
        raise error(f"{path} cannot be read: {cause}.\n{remedy}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise error(f"{path} is {kind}, not a file.\n{remedy}")


def inside(folder: Path, name: str) -> Path | None:
    """The file of a name that a foreign file gives; None if the name leads out of the folder.

    The last part may be a link to elsewhere, as in the hub's cache; folders on the way may not.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or not name.isprintable():
        return None
    if max(map(len, map(os.fsencode, parts))) > 255:  # no file system has such a name
        return None
    path = folder.joinpath(*parts)
    return path if path.parent.resolve().is_relative_to(folder.resolve()) else None


def parse(content: bytes | str) -> Any:
    """JSON without NaN and infinity. Raises `ValueError` for whatever is wrong with it."""
    try:
        return json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value) -> str:
    """A value for an error message, on one line and short."""
    return _short.repr(value)


def cause_of(fault: BaseException) -> str:
    """What an error of another library says, on one line and short."""
    return ascii(str(fault) or type(fault).__name__)[1:200].rstrip("'\"")


def _range(low, high) -> str:
    if low is not None and high is not None:
        return f"which is not from {low:,} to {high:,}"
    return "which is out of range" if low is None else f"which is not a number from {low:,} on"


def _refuse(name: str):
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _unblocked(path, flags: int) -> int:
    """Opens without waiting for a pipe's other end, should the path have become one."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2
