"""Where a product comes from, recorded inside the product itself.

`collect` gathers it for a job: rule, inputs with their hashes, parameters, code hash, state of the
source tree, versions, hardware, start and duration. Tables keep it in their metadata, directories
(models, tokenizers) in `provenance.json`, figures in the PNG's or PDF's keywords. Text renderings
(CSV, Markdown, LaTeX, captions) carry none: the table or figure beside them does.

Paths are recorded relative to the workflow's working directory. Only the standard library is
imported, and nothing is imported to learn its version.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from ember.records.atomic import write_json
from ember.records.errors import BadProvenance
from ember.records.foreign import parse
from ember.records.remedy import again, remake

SIDECAR = "provenance.json"
PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow"),
    *("snakemake", "matplotlib", "gguf", "peft", "datasets", "triton"),
)
# What results depend on; documents and tests do not change them.
SOURCES = ("src", "rules", "workflow", "config", "Snakefile")
_MARK = "ember-provenance "
_FORM = {
    **dict.fromkeys(("rule", "started"), str),
    **dict.fromkeys(("inputs", "outputs", "products"), list),
    **dict.fromkeys(
        ("config", "params", "seeds", "source", "versions", "hardware", "job", "times"), dict
    ),
}
_RENDERED = {".csv", ".md", ".tex", ".json", ".jsonl", ".txt"}
_WORTH_A_NOTE = 2**20  # bytes: smaller files are read as fast as a note about them
_SETTLED_NS = 2 * 10**9
_IGNORED_NAMES = {"__pycache__", ".snakemake_timestamp"}


def collect(
    *,
    rule: str,
    inputs: Iterable[Path | str],
    outputs: Iterable[Path | str],
    params: Mapping,
    config: Mapping,
    seeds: Mapping,
    code: str | None,
    threads: int,
    started: str,
    seconds: float,
    hardware: Mapping,
) -> dict:
    """The provenance of one job, as plain JSON data.

    Args: started: ISO 8601; seconds: duration until now; config: the part of the configuration the
    job used. Raises `BadProvenance` for an input that is not there.
    """
    root = source_root()
    provenance = {
        "rule": rule,
        "inputs": [describe(path) for path in dict.fromkeys(map(str, inputs))],
        "outputs": [_relative(path) for path in outputs],
        "params": dict(params),
        "config": dict(config),
        "seeds": dict(seeds),
        "code": code,
        "source": source_state(root),
        "ember": ember_version(root),
        "versions": versions(),
        "hardware": dict(hardware),
        "threads": threads,
        "started": started,
        "seconds": round(seconds, 3),
    }
    return json.loads(json.dumps(provenance, default=str))


def describe(path: Path | str) -> dict:
    """A file or directory as an input: path, kind, sha256, bytes. Raises `BadProvenance`."""
    sha256, size = digest(path, remembered=True)
    kind = "directory" if Path(path).is_dir() else "file"
    return {"path": _relative(path), "kind": kind, "sha256": sha256, "bytes": size}


def digest(path: Path | str, *, remembered: bool = False) -> tuple[str, int]:
    """SHA-256 and bytes of a file, or of a directory's file names and contents.

    remembered: take the digest of a large file that an earlier job of the run noted, where inode,
    size and times are still the same. Raises `BadProvenance` where nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return _file_digest(path, remembered)
    if not path.is_dir():
        raise BadProvenance(f"{path} does not exist\nmake it with `{remake(path)}`")
    total, size = hashlib.sha256(), 0
    for file in _files(path):
        sha256, length = _file_digest(file, remembered)
        total.update(f"{file.relative_to(path).as_posix()}:{sha256}\n".encode())
        size += length
    return total.hexdigest(), size


def size_bytes(path: Path | str) -> int:
    """Bytes of a file, or of all files in a directory; 0 where nothing is there."""
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in _files(path))
    return path.stat().st_size if path.is_file() else 0


def describe_machine(hardware: Mapping, *, details: bool = False) -> str:
    """Processor, cores and accelerators in a few words: what times may be compared on.

    details: with memory, drivers, operating system and node.
    """
    gpus = hardware.get("gpus") or []
    words = [hardware.get("cpu") or "unknown CPU"]
    words += [f"{hardware['cores']} cores"] if hardware.get("cores") else []
    words += sorted({gpu["name"] for gpu in gpus})
    if details:
        memory = hardware.get("memory_bytes")
        words += [f"{memory / 1e9:.1f} GB"] if memory else []
        words += sorted({f"driver {gpu['driver']}" for gpu in gpus if gpu.get("driver")})
        words += [str(hardware[key]) for key in ("os", "node") if hardware.get(key)]
    return ", ".join(words)


# Versions and source


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Python and the installed packages that results may depend on."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def ember_version(root: Path | None = None) -> str:
    """Version of ember: of the source tree where there is one, else of the installed package."""
    try:
        project = tomllib.loads(((root or source_root()) / "pyproject.toml").read_text("utf-8"))
        return project["project"]["version"]
    except (OSError, KeyError, ValueError):
        return metadata.version("ember")


def source_root() -> Path:
    """The folder that holds src/ember."""
    return Path(__file__).resolve().parents[3]


@lru_cache(maxsize=8)
def source_state(root: Path) -> dict:
    """Commit and dirty flag of the source tree; where they do not name it, a hash of its content.

    Without git (a copied tree, no git program) commit and dirty are None and `note` says that the
    hash of src, rules, workflow, config and Snakefile stands in for them. Asked once a process.
    """
    # A tree without git may stand inside someone else's repository: its commit says nothing.
    lines = _git_status(root).splitlines() if (root / ".git").exists() else []
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), None)
    if commit in (None, "(initial)"):
        note = f"no git: tree_sha256 hashes {', '.join(SOURCES)}"
        return {"commit": None, "dirty": None, "tree_sha256": tree_sha256(root), "note": note}
    if all(line.startswith("#") for line in lines):
        return {"commit": commit, "dirty": False}
    return {"commit": commit, "dirty": True, "tree_sha256": tree_sha256(root)}


def tree_sha256(root: Path) -> str:
    """Hash of the names and contents of everything in `SOURCES` under `root`."""
    total = hashlib.sha256()
    for name in SOURCES:
        path = root / name
        for file in [path] if path.is_file() else _files(path):
            place = file.relative_to(root)
            if file.suffix != ".pyc" and not any(p.endswith(".egg-info") for p in place.parts):
                total.update(f"{place.as_posix()}:{_file_digest(file)[0]}\n".encode())
    return total.hexdigest()


def _git_status(root: Path) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain=v2"]
    try:
        done = subprocess.run(
            [*command, "--branch", "--", *SOURCES], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


# Inside products


def write_sidecar(folder: Path | str, provenance: Mapping) -> Path:
    """Leave the provenance inside a directory product."""
    return write_json(Path(folder) / SIDECAR, provenance)


def read_sidecar(folder: Path | str) -> dict | None:
    """The provenance of a directory product, None if it has none. Raises `BadProvenance`."""
    path = Path(folder) / SIDECAR
    if not path.is_file():
        return None
    return _loads(path, path.read_bytes())


def file_hashes(folder: Path | str) -> dict[str, str]:
    """SHA-256 of every file of a directory product, its sidecar apart, by path inside it."""
    folder = Path(folder)
    hashes = {file.relative_to(folder).as_posix(): _file_digest(file)[0] for file in _files(folder)}
    hashes.pop(SIDECAR, None)
    return hashes


def figure_metadata(provenance: Mapping) -> dict[str, str]:
    """What to hand to matplotlib's `savefig(metadata=...)`, for PNG and PDF alike."""
    # PDF allows no keys of one's own, hence the keywords. ASCII: both formats keep it as it is.
    text = _MARK + json.dumps(provenance, ensure_ascii=True, allow_nan=False)
    return {"Creator": f"ember {provenance.get('ember', '')}".strip(), "Keywords": text}


def read_figure_provenance(path: Path | str) -> dict | None:
    """The provenance inside a PNG or PDF, None if it has none. Raises `BadProvenance`."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadProvenance(f"{path} cannot be read: {error.strerror}\n{again(path)}") from None
    text = (_png_keywords if path.suffix == ".png" else _pdf_keywords)(path, content)
    if text is None or not text.startswith(_MARK):
        return None
    return _loads(path, text.removeprefix(_MARK))


def provenance_of(path: Path | str) -> dict | None:
    """The provenance inside any product, None if it carries none.

    Raises `BadProvenance` or `BadTable` for a product that is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return read_sidecar(path)
    if path.suffix == ".parquet":
        from ember.records.tables import table_provenance

        made = table_provenance(path)
        if made is not None and not is_provenance(made):
            raise BadProvenance(f"the provenance in {path} cannot be read\n{again(path)}")
        return made
    if path.suffix in (".png", ".pdf"):
        return read_figure_provenance(path)
    return None


def carrier(path: Path | str) -> Path:
    """The file that carries a product's provenance: for a text rendering, the one beside it."""
    path = Path(path)
    if path.suffix in _RENDERED and path.name != SIDECAR:
        stem = path.with_suffix("")
        stem = stem.with_suffix("") if stem.suffix == ".caption" else stem
        for ending in (".parquet", ".png", ".pdf"):
            if (beside := stem.with_name(stem.name + ending)).is_file():
                return beside
    return path.parent if path.name == SIDECAR else path


def _png_keywords(path: Path, content: bytes) -> str | None:
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BadProvenance(f"{path} is not a PNG image\n{again(path)}")
    if not content.endswith(b"IEND\xaeB`\x82"):
        raise BadProvenance(f"{path} is truncated: the image has no end\n{again(path)}")
    before, chunk, after = content.partition(b"tEXtKeywords\0")
    length = int.from_bytes(before[-4:], "big") - len("Keywords\0")
    return after[:length].decode("latin-1") if chunk else None


def _pdf_keywords(path: Path, content: bytes) -> str | None:
    if not content.startswith(b"%PDF"):
        raise BadProvenance(f"{path} is not a PDF\n{again(path)}")
    if b"%%EOF" not in content[-1024:]:
        raise BadProvenance(f"{path} is truncated: the PDF has no end\n{again(path)}")
    found = re.search(rb"/Keywords \(((?:\\.|[^\\)])*)\)", content, re.DOTALL)
    return re.sub(rb"\\(.)", rb"\1", found[1]).decode("latin-1") if found else None


def _loads(path: Path, text: bytes | str) -> dict:
    try:
        data = parse(text)
    except ValueError:
        data = None
    if not is_provenance(data):
        raise BadProvenance(f"the provenance in {path} cannot be read\n{again(path)}")
    return data


def is_provenance(data: object) -> bool:
    """Whether foreign data has the form of `collect`'s, so that its parts can be used."""
    if not isinstance(data, dict):
        return False
    parts = {key: data.get(key) for key in _FORM}
    fits = all(part is None or isinstance(part, _FORM[key]) for key, part in parts.items())
    return (
        fits
        and all(isinstance(path, str) for path in parts["outputs"] or ())
        and all(map(_is_described, [*(parts["inputs"] or ()), *(parts["products"] or ())]))
    )


def _is_described(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes", 0), int)
    )


# Files


def _relative(path: Path | str) -> str:
    """Relative to the working directory where it lies inside, else absolute."""
    full = os.path.abspath(path)
    inside = os.path.relpath(full)
    return Path(full if inside.startswith("..") else inside).as_posix()


def _files(folder: Path) -> list[Path]:
    """Regular files under a folder, sorted, without what Snakemake and Python leave there."""
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name not in _IGNORED_NAMES]
        files += [Path(parent, name) for name in names if name not in _IGNORED_NAMES]
    return sorted((file for file in files if file.is_file()), key=lambda file: file.as_posix())


def _file_digest(path: Path, remembered: bool = False) -> tuple[str, int]:
    stat = path.stat()
    known = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return _hash_once(str(path.resolve()), known, remembered), stat.st_size


@lru_cache(maxsize=4096)
def _hash_once(path: str, known: tuple[int, ...], remembered: bool) -> str:
    # A job stamps several products with the same inputs: read a model's files once.
    note = _note(path) if remembered and known[1] >= _WORTH_A_NOTE else None
    if note and (sha256 := _noted(note, known)):
        return sha256
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # A file that changes again within the clock's tick would look the same: let it settle.
    if note and time.time_ns() - max(known[2:]) > _SETTLED_NS:
        with suppress(OSError):
            note.parent.mkdir(exist_ok=True)
            written = note.with_suffix(f".{os.getpid()}")
            written.write_text(" ".join(map(str, (*known, sha256))))
            os.replace(written, note)
    return sha256


def _note(path: str) -> Path | None:
    """Where jobs of one working folder note the digest of a large file for each other."""
    folder = Path(".snakemake")
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return folder / "ember-digests" / name if folder.is_dir() else None


def _noted(note: Path, known: tuple[int, ...]) -> str | None:
    with suppress(OSError, ValueError):
        *was, sha256 = note.read_text().split()
        if was == [str(number) for number in known] and len(sha256) == 64:
            return sha256
    return None  # nothing noted, of an earlier content, or damaged
