"""A model that is not trained here: random weights of a true shape, a local directory, or the hub.

The result is a directory in Hugging Face format, or, for random weights, `config.json` and an
`ember.json` with the seed from which they are drawn on load: gigabytes of noise are not kept.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ember.records.errors import EmberError
from ember.records.provenance import SIDECAR
from ember.studies.steps import makes

log = logging.getLogger(__name__)

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "tokenizer*", "*.jinja", "LICENSE*"]


class NoModel(EmberError):
    """The model cannot be had from its source."""


@makes()
def fetch_model(settings: Mapping, model: Path, *, seed: int) -> None:
    """Put the model that `settings` (models.NAME) describes at `model`. Raises `NoModel`."""
    folder = Path(model)
    folder.mkdir(parents=True, exist_ok=True)
    {"random": _random, "local": _local, "hub": _hub}[settings["source"]](settings, folder, seed)


def _random(settings: Mapping, folder: Path, seed: int) -> None:
    from ember.model.architecture import Architecture

    arch = Architecture.make(settings["preset"], **settings["architecture"])
    (folder / "config.json").write_text(json.dumps(arch.to_hf(), indent=2) + "\n")
    kind = {"weights": "random", "seed": seed, "preset": settings["preset"]}
    (folder / "ember.json").write_text(json.dumps(kind, indent=2) + "\n")
    log.info("declared %d random parameters, seed %d", arch.parameter_count(), seed)


def _local(settings: Mapping, folder: Path, seed: int) -> None:
    source = Path(settings["path"]).resolve()
    if not (source / "config.json").is_file():
        raise NoModel(f"{source} holds no config.json. Set models.NAME.path to a model directory.")
    _link(source, folder)


def _hub(settings: Mapping, folder: Path, seed: int) -> None:
    from huggingface_hub import snapshot_download

    name, revision = settings["hub_id"], settings["revision"]
    try:
        source = snapshot_download(name, revision=revision, allow_patterns=_PATTERNS)
    except Exception as error:
        raise NoModel(
            f"cannot get {name} from the hub ({type(error).__name__}: {error}). Fill the hub cache "
            "on a machine with network, or set source: local and path: to a copy."
        ) from None
    _link(Path(source), folder, "ember.json")
    kind = {"weights": "pretrained", "revision": Path(source).name}
    (folder / "ember.json").write_text(json.dumps(kind, indent=2) + "\n")


def _link(source: Path, folder: Path, *written: str) -> None:
    """Links to a model's files, save those that are written here: not through a link into it."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in (SIDECAR, *written):
            os.symlink(file.resolve(), folder / file.name)
            log.info("linked %s", file)
