"""Corpora as lists of documents, with ids, hashes and splits that do not depend on the machine.

Sources: the standard library's and installed packages' source code (long documents), the `pydoc`
topics (prose), local text files and data sets of the Hugging Face hub. A document's id never holds
an absolute path, its split follows from the hash of its id, and text that stands in two documents
is kept in one of them only, so that nothing held out was trained on. For one build of Python, and
the same versions of packages, the result is always the same.
"""

import glob
import hashlib
import logging
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from ember.records.errors import EmberError

log = logging.getLogger(__name__)

HELD_OUT_SPLITS = ("test", "validation")
SPLITS = ("train", "validation", "test")
HELD_OUT = 0.06  # fraction of the bytes in validation, and again in test

# Not in every installation (Debian packages them apart), not prose about programs (tables of
# encodings), or other people's code: a corpus with them would differ from machine to machine.
LEFT_OUT = frozenset(
    {
        *("antigravity", "curses", "dbm", "distutils", "encodings", "ensurepip", "idlelib"),
        *("lib2to3", "msilib", "pydoc_data", "sqlite3", "tkinter", "turtle", "turtledemo", "venv"),
    }
)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages"})
TEXT_SUFFIXES = frozenset({"", ".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".csv"})


class BadCorpus(EmberError):
    """A corpus that cannot be read or is too small; the message says why and what to change."""


@dataclass(frozen=True)
class Document:
    """One text. `sha256` is of its UTF-8 bytes; `split` is train, validation or test."""

    doc_id: str
    source: str
    text: str
    sha256: str
    split: str


def stdlib_sources(max_bytes: int | None = None, seed: int = 0) -> list[Document]:
    """Source files of the running Python's standard library, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {
        f"stdlib/{path.relative_to(root).as_posix()}": _read_text(path, "replace")
        for path in sorted(root.rglob("*.py"))
        if _in_stdlib(path.relative_to(root).parts)
    }
    return finish("stdlib", texts, max_bytes, seed)


def package_sources(
    packages: Iterable[str], max_bytes: int | None = None, seed: int = 0
) -> list[Document]:
    """Source files of installed distributions, tests left out.

    Raises `BadCorpus` naming one that is not installed, or a file of it that cannot be read.
    """
    texts = {
        f"packages/{file.as_posix()}": _read_text(Path(file.locate()), "replace")
        for package in packages
        for file in installed(package).files
        if file.suffix == ".py" and not TEST_FOLDERS.intersection(file.parts)
    }
    return finish("packages", texts, max_bytes, seed)


def installed(package: str) -> Distribution:
    """An installed distribution that lists its files. Raises `BadCorpus`."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise BadCorpus(
            f"the package {package!r} is not installed.\n"
            f"Install it (pip install {package}), or take it out of the corpus's packages."
        ) from None
    if found.files is None:
        raise BadCorpus(
            f"the package {package!r} was installed without a list of its files.\n"
            "Install it with pip, or take it out of the corpus's packages."
        )
    return found


def pydoc_topics(max_bytes: int | None = None, seed: int = 0) -> list[Document]:
    """The language reference's topics that `help()` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadCorpus(
            "this Python has no pydoc_data.topics.\n"
            "Install the complete standard library (Debian: libpython3-stdlib), or choose another "
            "source for the corpus."
        ) from None
    return finish("pydoc", {f"pydoc/{name}": topics[name] for name in topics}, max_bytes, seed)


def local_files(
    paths: Iterable[str | Path], max_bytes: int | None = None, seed: int = 0
) -> list[Document]:
    """UTF-8 text files: files, globs, or folders (every text file below them).

    An id is the path below the folder or glob that was named, never the absolute path.
    Raises `BadCorpus` naming the file that is missing, unreadable or not UTF-8 text.
    """
    texts: dict[str, str] = {}
    for path, name in named_files([str(path) for path in paths]):
        doc_id = f"files/{name}"
        if doc_id in texts:
            raise BadCorpus(
                f"two files of the corpus are called {name!r}.\n"
                "Name the folder that holds both, so that their ids differ."
            )
        texts[doc_id] = _read_text(path)
    return finish("files", texts, max_bytes, seed)


def hub_dataset(
    hub_id: str,
    name: str | None = None,
    split: str = "train",
    column: str = "text",
    revision: str | None = None,
    begins: str | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
) -> list[Document]:
    """A text column of a data set, by hub id or local path; one document a row, or, where `begins`
    is a regular expression, all rows from one that it matches up to the next (Wikitext's lines).

    The data set is streamed and only as many rows are read as `max_bytes` needs.
    Raises `BadCorpus` if `datasets` is not installed, or the data set, its split or the column
    cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise BadCorpus(
            f"the data set {hub_id!r} needs the package `datasets`, which is not installed.\n"
            "Install it (pip install 'ember[peers]'), or choose a corpus of source stdlib, "
            "packages, pydoc or files."
        ) from None
    texts: dict[str, str] = {}
    size = 0
    try:
        rows = datasets.load_dataset(hub_id, name, split=split, revision=revision, streaming=True)
        for index, row in enumerate(rows):
            if not isinstance(row.get(column), str):
                raise BadCorpus(
                    f"the data set {hub_id!r} has no text in a column {column!r}.\n"
                    f"Set column to one of: {', '.join(map(str, row))}."
                )
            if begins is None or not texts or re.match(begins, row[column]):
                current = f"hub/{_hub_name(hub_id)}/{split}/{index:07d}"
            texts[current] = texts.get(current, "") + row[column]
            size += len(row[column].encode())
            if max_bytes is not None and size >= max_bytes:
                break
    except BadCorpus:
        raise
    # datasets raises its own, fsspec's, httpx's and huggingface_hub's errors here.
    except Exception as error:
        raise BadCorpus(
            f"the data set {hub_id!r} (name {name!r}, split {split!r}) cannot be read: "
            f"{type(error).__name__}: {error}\n"
            "Check id, name, split and network; without a network give hub_id the path of a local "
            "copy, or choose a corpus of source stdlib, packages, pydoc or files."
        ) from error
    # The byte limit cut the stream; a seeded choice over it would drop the row that crossed it.
    return finish("hub", texts, None, seed)


def finish(source: str, texts: dict[str, str], max_bytes: int | None, seed: int) -> list[Document]:
    """Documents from id → text: repeats dropped, limited to `max_bytes`, split, sorted by id."""
    texts = {name: _clean(text) for name, text in texts.items()}
    texts = without_repeats({name: text for name, text in texts.items() if text.strip()})
    if max_bytes is not None:
        texts = _limit(texts, max_bytes, seed)
    if len(texts) < len(SPLITS):
        raise BadCorpus(
            f"the corpus has {len(texts)} documents that are neither empty nor repeats.\n"
            "It needs at least three (train, validation, test): name more files, cut a long one "
            "into several, or raise max_bytes."
        )
    splits = assign_splits(texts)
    documents = [
        Document(name, source, text, hashlib.sha256(text.encode()).hexdigest(), splits[name])
        for name, text in sorted(texts.items())
    ]
    log.info(
        "%s: %d documents, %s",
        source,
        len(documents),
        ", ".join(f"{split} {split_bytes(documents, split)} bytes" for split in SPLITS),
    )
    return documents


def split_bytes(documents: Iterable[Document], split: str) -> int:
    """Bytes of UTF-8 text in a split."""
    return sum(len(doc.text.encode()) for doc in documents if doc.split == split)


def without_repeats(texts: dict[str, str], threshold: float = 0.1) -> dict[str, str]:
    """Texts without those whose lines mostly stand in a longer one.

    From the longest down, a text is dropped when more than `threshold` of its distinct lines (of
    30 characters or more, stripped) occur in the texts kept so far. Topics of `pydoc` repeat whole
    chapters, and a held-out copy of a trained text would make any score meaningless.
    """
    kept: dict[str, str] = {}
    seen: set[int] = set()
    for name, text in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0])):
        lines = {hash(line) for line in map(str.strip, text.splitlines()) if len(line) >= 30}
        lines = lines or {hash(text.strip())}
        if len(lines & seen) <= threshold * len(lines):
            seen |= lines
            kept[name] = text
    return kept


def assign_splits(texts: dict[str, str], held_out: float = HELD_OUT) -> dict[str, str]:
    """Split of each text, by the hash of its id: test and validation hold `held_out` of the bytes.

    In the order of their hashes, texts fill test, then validation, while they fit. A split that
    stays empty (few or long texts) takes the shortest text of train.
    """
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    quota = held_out * sum(sizes.values())
    filled = dict.fromkeys(HELD_OUT_SPLITS, 0)
    splits = {}
    for name in sorted(texts, key=_unit_hash):
        splits[name] = "train"
        for split in HELD_OUT_SPLITS:
            # Nearly full is full: or only ever shorter texts would find room.
            if filled[split] < 0.8 * quota and filled[split] + sizes[name] <= 1.1 * quota:
                splits[name] = split
                filled[split] += sizes[name]
                break
    for split in HELD_OUT_SPLITS:
        if not filled[split]:
            free = [name for name in texts if splits[name] == "train"]
            splits[min(free, key=lambda name: (sizes[name], _unit_hash(name)))] = split
    return splits


def _in_stdlib(parts: tuple[str, ...]) -> bool:
    top = parts[0].removesuffix(".py")
    return (
        top in sys.stdlib_module_names
        and top not in LEFT_OUT
        and not TEST_FOLDERS.intersection(parts)
        # Written at build time, with the paths of the machine that built it.
        and not parts[-1].startswith("_sysconfigdata")
    )


def named_files(paths: Iterable[str]) -> Iterable[tuple[Path, str]]:
    """Files that paths, folders and globs name, each with its name in the corpus.

    Raises `BadCorpus` where one names none.
    """
    for pattern in paths:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = [
                (file, file.relative_to(path).as_posix())
                for file in sorted(path.rglob("*"))
                if file.is_file() and file.suffix in TEXT_SUFFIXES
            ]
        elif path.is_file():
            found = [(path, path.name)]
        else:
            base = _fixed_part(path)
            found = [
                (file, file.relative_to(base).as_posix())
                for file in map(Path, sorted(glob.glob(str(path), recursive=True)))
                if file.is_file()
            ]
        if not found:
            raise BadCorpus(
                f"no text file at {pattern!r}.\n"
                "Correct the corpus's paths in the config: a file, a folder or a glob."
            )
        yield from found


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _read_text(path: Path, errors: str = "strict") -> str:
    try:
        return path.read_bytes().decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise BadCorpus(
            f"{path} is not UTF-8 text (byte {error.start}).\n"
            "Convert it (iconv -t utf-8), or leave it out of the corpus's paths."
        ) from None
    except OSError as error:
        raise BadCorpus(
            f"{path} cannot be read: {error.strerror}.\nCorrect the corpus's settings or the file."
        ) from None


def _clean(text: str) -> str:
    """Unix line ends and no lone surrogates, which UTF-8 cannot hold."""
    return text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()


def _limit(texts: dict[str, str], max_bytes: int, seed: int) -> dict[str, str]:
    """Whole texts in a seeded order, as many as fit; one that does not fit is passed over."""
    chosen, free = {}, max_bytes
    for name in sorted(texts, key=lambda name: _unit_hash(f"{seed}/{name}")):
        size = len(texts[name].encode())
        if size <= free:
            chosen[name] = texts[name]
            free -= size
    return chosen


def _unit_hash(name: str) -> float:
    """A number in [0, 1), uniform over names and the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _hub_name(hub_id: str) -> str:
    """The id, or of a local path its last part."""
    return Path(hub_id).name if Path(hub_id).exists() else hub_id
