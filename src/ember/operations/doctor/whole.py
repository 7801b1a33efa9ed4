"""Is a product whole? Every kind of file the workflow makes, checked by what it says of itself.

Tables have a checksum, figures the checksums of their formats, directories the hashes in their
sidecar, captions their hash in the figure; text renderings are rendered again from the table.
"""

import hashlib
import json
import pkgutil
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from ember.records.errors import EmberError
from ember.records.provenance import (
    SIDECAR,
    file_hashes,
    read_figure_provenance,
    read_sidecar,
)
from ember.records.render import render
from ember.records.schema import Schema, differences
from ember.records.tables import read_table, table_schema, verify_table

FILE_ENDINGS = (".parquet", ".csv", ".md", ".tex", ".png", ".pdf", ".json", ".jsonl", ".txt")
RENDERED = (".csv", ".md", ".tex")
CAPTION = ".caption.md"


@dataclass(frozen=True)
class Verdict:
    """fault: what is wrong with the product; unchecked: why nothing can be said of it."""

    fault: str | None = None
    unchecked: str | None = None


def check(path: Path) -> Verdict:
    """Whether the product at `path`, which is there, can be read whole. Changes nothing."""
    try:
        return _check(path)
    except EmberError as error:
        # The second line of the message is a remedy; the command that mends comes with the finding.
        return Verdict(_without_path(str(error).splitlines()[0], path))
    except OSError as error:
        return Verdict(unchecked=f"cannot be read: {error.strerror or error}")


def is_whole_jsonl(path: Path) -> bool:
    """Whether every line is JSON, and there is one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return bool([json.loads(line) for line in lines])
    except ValueError:
        return False


def _check(path: Path) -> Verdict:
    if not path.exists():
        return Verdict("it is a link to nothing")
    wants_file = path.suffix in FILE_ENDINGS
    if path.is_dir():
        return Verdict("it is a directory, not a file") if wants_file else _directory(path)
    if not wants_file:
        return Verdict("it is a file, not a directory")
    if not path.stat().st_size:
        return Verdict("it is empty")
    if path.suffix == ".parquet":
        return Verdict(_table(path))
    if path.name.endswith(CAPTION):
        return _caption(path)
    if path.suffix in RENDERED:
        return _rendering(path)
    if path.suffix == ".png":
        return Verdict(_png(path))
    if path.suffix == ".pdf":
        return Verdict(_pdf(path))
    return Verdict(unchecked=f"no check for {path.suffix} files")


def _without_path(cause: str, path: Path) -> str:
    return re.sub(rf"^\S*{re.escape(path.name)},? (?=\S)", "it ", cause)


# Tables and their renderings


def _table(path: Path) -> str | None:
    verify_table(path)
    found = table_schema(path)
    declared = _declared().get(found.name)
    if declared is None:
        return f"its schema {found.name!r} is no longer declared in ember.studies"
    phrases = differences(found, declared)
    return f"not of schema {found.name!r} as declared: {'; '.join(phrases)}" if phrases else None


@cache
def _declared() -> dict[str, Schema]:
    """Every schema of the library, by name: what the studies' `tables` hold."""
    studies = import_module("ember.studies")  # by name: operations know no study
    modules = [
        import_module(found.name)
        for found in pkgutil.walk_packages(studies.__path__, "ember.studies.")
        if found.name.endswith(".tables")
    ]
    values = [value for module in modules for value in vars(module).values()]
    return {value.name: value for value in values if isinstance(value, Schema)}


def _rendering(path: Path) -> Verdict:
    source = path.with_suffix(".parquet")
    if not source.is_file():
        return Verdict(unchecked=f"there is no {source.name} beside it to compare with")
    try:
        header = verify_table(source)
        wanted = _render_again(source, header, path.suffix)
    except EmberError:
        return Verdict(unchecked=f"{source.name}, from which it is rendered, cannot be read")
    found = path.read_bytes()
    if found == wanted:
        return Verdict()
    lines, expected = found.splitlines(), wanted.splitlines()
    differing = [
        n for n, pair in enumerate(zip(lines, expected, strict=False), 1) if len({*pair}) > 1
    ]
    where = f"line {differing[0]}" if differing else f"{len(lines)} lines, not {len(expected)}"
    return Verdict(f"it does not say what {source.name} says ({where})")


def _render_again(source: Path, header: dict, ending: str) -> bytes:
    schema = table_schema(source)
    with tempfile.TemporaryDirectory() as scratch:
        stem = Path(scratch) / source.stem
        rows = read_table(source)
        [file] = render(rows, schema, stem, header["provenance"], formats=(ending[1:],))
        return file.read_bytes()


# Figures and their captions


def _caption(path: Path) -> Verdict:
    figure = path.with_name(path.name.removesuffix(CAPTION) + ".png")
    if not figure.is_file():
        return Verdict(unchecked=f"there is no {figure.name} beside it to compare with")
    try:
        recorded = (read_figure_provenance(figure) or {}).get("caption_sha256")
    except EmberError:
        recorded = None
    if recorded is None:
        return Verdict(unchecked=f"{figure.name} does not say which caption belongs to it")
    if hashlib.sha256(path.read_bytes()).hexdigest() != recorded:
        return Verdict(f"it is not the caption that was written with {figure.name}")
    return Verdict()


def _png(path: Path) -> str | None:
    read_figure_provenance(path)  # signature, end
    content = path.read_bytes()
    pixels = zlib.decompressobj()
    for kind, data, sum_ in _chunks(content):
        if zlib.crc32(kind + data) != sum_:
            return f"its {kind.decode('latin-1')} chunk does not match its checksum"
        if kind == b"IDAT":
            pixels.decompress(data)
    return None if pixels.eof else "its image data has no end"


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    place, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        data = content[place + 8 : place + 8 + length]
        yield kind, data, int.from_bytes(content[place + 8 + length : place + 12 + length], "big")
        place += 12 + length


def _pdf(path: Path) -> str | None:
    read_figure_provenance(path)  # signature, end
    content = path.read_bytes()
    start = re.search(rb"startxref\s+(\d+)\s+%%EOF\s*$", content)
    table = start and re.compile(rb"xref\s+0 (\d+)\s+").match(content, int(start[1]))
    if not table:
        return "its table of objects is not where its end says"
    for number in range(1, int(table[1])):
        entry = content[table.end() + 20 * number :][:20]
        place = int(entry[:10]) if entry[:10].isdigit() else len(content)
        if entry[17:18] == b"n" and not content.startswith(b"%d 0 obj" % number, place):
            return f"its object {number} is not where its table says"
    return _streams(content)


def _streams(content: bytes) -> str | None:
    """Compressed streams carry a checksum; matplotlib compresses every one."""
    for match in re.finditer(rb"/FlateDecode[^>]*>>\s*stream\r?\n", content):
        stream = zlib.decompressobj()
        try:
            stream.decompress(content[match.end() :])
        except zlib.error:
            return f"its stream at byte {match.end()} cannot be decompressed"
        if not stream.eof:
            return f"its stream at byte {match.end()} has no end"
    return None


# Directories


def _directory(path: Path) -> Verdict:
    provenance = read_sidecar(path)
    if provenance is None:
        return Verdict(f"it has no {SIDECAR}: its job was stopped, or a copy of it was")
    recorded = provenance.get("files")
    if recorded is None:
        return Verdict(unchecked=f"its {SIDECAR} holds no hashes of its files")
    found = file_hashes(path)
    faults = [f"{name} is missing" for name in sorted(recorded.keys() - found.keys())]
    faults += [
        f"{name} is not what its job wrote"
        for name in sorted(found.keys() & recorded.keys())
        if found[name] != recorded[name]
    ]
    faults += [f"{name} was added to it" for name in sorted(found.keys() - recorded.keys())]
    return Verdict("; ".join(faults) or None)
