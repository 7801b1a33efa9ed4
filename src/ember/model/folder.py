"""What a model directory says of itself: configuration, weight files, where weights come from.

Headers and small files only, without torch, so that a job which asks no more starts at once. The
contract of a directory is `ember.model.checkpoint`'s.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from ember.model.architecture import Architecture
from ember.model.names import is_constant
from ember.records.errors import EmberError

CONFIG, KIND, WEIGHTS = "config.json", "ember.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
KINDS = ("trained", "random", "pretrained")


class BadCheckpoint(EmberError):
    """A model directory that cannot be loaded; the message names the file and the remedy."""


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture that a model directory's config.json describes."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadCheckpoint(
            f"there is no model directory {folder}.\n"
            "Let the workflow make it, or set the model's path to a local copy."
        )
    return Architecture.from_hf(read_json(folder / CONFIG))


def weights_kind(folder: str | Path) -> str:
    """Where a model directory's weights come from: trained, random or pretrained."""
    return read_kind(Path(folder))["weights"]


def snapshot(folder: str | Path) -> dict:
    """What a model directory holds: files (file, bytes, sha256), parameters, architecture.

    `revision` is the hub's commit where `ember.json` records one. Parameters are counted in the
    weight files; declared random weights by the architecture. Raises `BadCheckpoint` for files
    whose tensors are not the architecture's.
    """
    folder = Path(folder)
    arch = read_architecture(folder)
    kind = read_kind(folder)
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        files.append({"file": name, "bytes": path.stat().st_size, "sha256": digest})
    parameters = arch.parameter_count()
    if files_of_weights := weight_files(folder):
        counted = sum(math.prod(shape) for name, shape in _shapes(files_of_weights, arch))
        if counted != parameters:
            raise BadCheckpoint(
                f"the weights in {folder} have {counted:,} parameters, but {CONFIG} describes "
                f"{parameters:,}.\nGive matching files."
            )
    return {
        "files": files,
        "parameters": parameters,
        "architecture": arch.model_type,
        "revision": kind.get("revision"),
    }


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a directory; a shard that its index names must exist."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        files = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
        for file in files:
            if not file.is_file():
                raise BadCheckpoint(
                    f"{file} is missing, but {folder / INDEX} names it.\n"
                    "Copy or download the model again."
                )
        return files
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def open_weights(file: Path, framework: str = "np"):
    """A safetensors file, opened; tensors come as `framework`'s. Raises `BadCheckpoint`."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(
            f"{file} is truncated or no safetensors file ({error}).\n"
            "Copy or download it again, or delete it and let the workflow make it."
        ) from None


def _shapes(files: list[Path], arch: Architecture) -> Iterator[tuple[str, list[int]]]:
    """Shapes of the model's own tensors, read from the headers alone."""
    for file in files:
        with open_weights(file) as stream:
            for name in stream.keys():  # noqa: SIM118 (not a dict)
                if not is_constant(arch, name):
                    yield name, stream.get_slice(name).get_shape()


def read_kind(folder: Path) -> dict:
    """What `ember.json` says; pretrained where there is none."""
    if not (folder / KIND).is_file():
        return {"weights": "pretrained"}
    kind = read_json(folder / KIND)
    if kind.get("weights") not in KINDS:
        raise BadCheckpoint(
            f"{folder / KIND} says weights are {kind.get('weights')!r}.\n"
            f"Set it to one of {', '.join(KINDS)}."
        )
    return kind


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{path} is missing.\nGive a complete model directory, or make it again."
        ) from None
    except ValueError as error:
        raise BadCheckpoint(
            f"{path} is not valid JSON ({error}).\nCopy the file again, or make it again."
        ) from None
