"""What a model directory says of itself: configuration, weight files, where weights come from.

Headers and small files only, without torch, so that a job which asks no more starts at once. The
contract of a directory is `ember.model.checkpoint`'s. A directory is not trusted: see
`ember.records.foreign` and SECURITY.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ember.model import names
from ember.model.architecture import Architecture
from ember.model.families import token_ids
from ember.records.errors import EmberError
from ember.records.foreign import Fields, cause_of, check_regular, inside, parse, read_object, shown
from ember.records.provenance import SIDECAR, digest

CONFIG, KIND, WEIGHTS = "config.json", "ember.json", "model.safetensors"
INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
KINDS = ("trained", "random", "pretrained")
FORMATS = ("F64", "F32", "F16", "BF16")  # of weights, as safetensors calls them
REMEDY = "Give a complete model directory, or make or download it again."


class BadCheckpoint(EmberError):
    """A model directory that cannot be loaded; the message names the file and the remedy."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, by the file's header."""

    file: Path
    name: str
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """A model directory: its architecture, what `ember.json` says, and its weights by their names
    (constants and copies left out). Declared random weights have no tensors."""

    arch: Architecture
    kind: Fields
    tensors: dict[str, Stored]


def read_contents(folder: str | Path) -> Contents:
    """What a model directory holds, checked as far as headers tell.

    Where its config ties the head but its files hold another head, the head is not tied. Raises
    `BadCheckpoint`, `BadArchitecture` or `UnsupportedModel`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadCheckpoint(
            f"there is no model directory {folder}.\n"
            "Let the workflow make it, or set the model's path to a local copy."
        )
    arch = Architecture.from_hf(read_object(folder / CONFIG, BadCheckpoint, REMEDY))
    tensors: dict[str, Stored] = {}
    for stored in (stored for file in weight_files(folder) for stored in _headers(file)):
        if stored.name in tensors:
            raise BadCheckpoint(
                f"{shown(stored.name)} in {stored.file} repeats one of "
                f"{tensors[stored.name].file}.\n{REMEDY}"
            )
        tensors[stored.name] = stored
    arch, tensors = _resolve_head(arch, tensors)
    tensors = {name: tensors[name] for name in tensors if not names.is_constant(arch, name)}
    for stored in tensors.values():
        if stored.format not in FORMATS:
            raise BadCheckpoint(
                f"{shown(stored.name)} in {stored.file} is {stored.format}.\n"
                "Give weights in float32, bfloat16 or float16."
            )
    held, described = _count(tensors), arch.parameter_count()
    if tensors and described > 2 * held:  # smaller differences are named tensor by tensor
        raise BadCheckpoint(_other_size(folder, held, described))
    return Contents(arch, read_kind(folder), tensors)


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture that a model directory's config.json and weights describe."""
    return read_contents(folder).arch


def weights_kind(folder: str | Path) -> str:
    """Where a model directory's weights come from: trained, random or pretrained."""
    return read_kind(Path(folder)).get("weights", str)


def read_kind(folder: Path) -> Fields:
    """What `ember.json` says; pretrained where there is none."""
    if not (folder / KIND).exists():
        return Fields({"weights": "pretrained"}, str(folder / KIND), BadCheckpoint, REMEDY)
    kind = read_object(folder / KIND, BadCheckpoint, REMEDY)
    kind.get("weights", str, choices=KINDS)
    return kind


def eos_token_ids(folder: str | Path) -> tuple[int, ...]:
    """Tokens at which a completion ends, as `generate` of Transformers takes them.

    Those of generation_config.json or, where it names none, of config.json.
    """
    for name in (GENERATION, CONFIG):
        path = Path(folder) / name
        if path.exists():
            found = token_ids(read_object(path, BadCheckpoint, REMEDY), "eos_token_id")
            if found is not None:
                return found if isinstance(found, tuple) else (found,)
    return ()


def snapshot(folder: str | Path) -> dict:
    """What a model directory holds: files (file, bytes, sha256), parameters, architecture.

    `revision` is the hub's commit where `ember.json` records one. Parameters are counted in the
    weight files; declared random weights by the architecture. Raises `BadCheckpoint` for files
    whose tensors are not the architecture's.
    """
    folder = Path(folder)
    contents = read_contents(folder)
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sha256, size = digest(path)
        files.append({"file": path.relative_to(folder).as_posix(), "bytes": size, "sha256": sha256})
    parameters = contents.arch.parameter_count()
    if contents.tensors and (held := _count(contents.tensors)) != parameters:
        raise BadCheckpoint(_other_size(folder, held, parameters))
    return {
        "files": files,
        "parameters": parameters,
        "architecture": contents.arch.model_type,
        "revision": contents.kind.get("revision", str, None),
    }


def check_unchanged(folder: str | Path) -> None:
    """Raises `BadCheckpoint` if files of a model that was trained here are not as they were made.

    Compares their hashes with those in the directory's provenance; this reads each file once, and
    not again when the job records its inputs. Other directories have no such record.
    """
    folder = Path(folder)
    if weights_kind(folder) != "trained" or not (folder / SIDECAR).exists():
        return
    recorded = read_object(folder / SIDECAR, BadCheckpoint, REMEDY).object("files")
    for file in (folder / CONFIG, folder / KIND, *weight_files(folder)):
        wanted = recorded.get(file.relative_to(folder).as_posix(), str, None)
        if recorded and digest(file)[0] != wanted:
            raise BadCheckpoint(
                f"{file} has changed since the model was trained: its SHA-256 is not the one in "
                f"{folder / SIDECAR}.\nDelete {folder} and run the workflow again."
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a directory: one, or else the shards that its index names."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    index = read_object(folder / INDEX, BadCheckpoint, REMEDY)
    files = []
    for name in sorted(set(index.get("weight_map", dict).values_of(str).values())):
        if (file := inside(folder, name)) is None:
            raise index.bad(f"names {shown(name)}, which is not a file of its folder")
        if not file.exists():
            raise BadCheckpoint(f"{file} is missing, but {folder / INDEX} names it.\n{REMEDY}")
        files.append(file)
    return files


def open_weights(
    file: Path,
    framework: str = "np",
    error: type[EmberError] = BadCheckpoint,
    remedy: str = REMEDY,
):
    """A safetensors file, opened; tensors come as `framework`'s. Raises `error`."""
    from safetensors import SafetensorError, safe_open

    check_regular(file, error, remedy)
    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as fault:
        raise error(
            f"{file} is truncated or no safetensors file ({cause_of(fault)}).\n{remedy}"
        ) from None


def _headers(file: Path) -> Iterator[Stored]:
    with open_weights(file) as stream:
        for name in sorted(stream.keys()):
            header = stream.get_slice(name)
            yield Stored(file, name, header.get_dtype(), tuple(header.get_shape()))


def _count(tensors: dict[str, Stored]) -> int:
    return sum(math.prod(stored.shape) for stored in tensors.values())


def _other_size(folder: Path, held: int, described: int) -> str:
    return (
        f"the weights in {folder} have {held:,} parameters, but {CONFIG} describes "
        f"{described:,}.\nGive matching files."
    )


def _resolve_head(
    arch: Architecture, tensors: dict[str, Stored]
) -> tuple[Architecture, dict[str, Stored]]:
    """As Transformers ties: not if both matrices are there and differ, and if only the head's is
    there, it is taken for both."""
    ours = {names.renamed(arch, name): name for name in tensors}
    head, embedding = ours.get(names.HEAD), ours.get(names.EMBEDDING)
    if not arch.tie_embeddings or head is None:
        return arch, tensors
    if embedding is None:
        (embedding,) = names.to_hf(arch, {names.EMBEDDING: None})
        return arch, {**tensors, embedding: tensors[head]}
    if _same_bytes(tensors[head], tensors[embedding]):
        return arch, tensors
    return replace(arch, tie_embeddings=False), tensors


def _same_bytes(one: Stored, other: Stored) -> bool:
    if (one.format, one.shape) != (other.format, other.shape):
        return False
    return all(a == b for a, b in zip(_content(one), _content(other), strict=True))


def _content(stored: Stored, chunk: int = 1 << 24) -> Iterator[bytes]:
    """A tensor's bytes, of whatever format, by a header that `open_weights` has accepted."""
    with stored.file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = parse(stream.read(length))[stored.name]["data_offsets"]
        stream.seek(8 + length + begin)
        for at in range(begin, end, chunk):
            yield stream.read(min(chunk, end - at))
