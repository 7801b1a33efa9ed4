"""What models and corpora are made from outside of the workflow, as one hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ember.records.provenance import SIDECAR, digest
from ember.text.corpora import BadCorpus, installed, named_files


def content_sha256(settings: Mapping) -> str | None:
    """Hash of names and contents of the files that a model or corpus is made from, links followed,
    or of the versions of packages.

    settings: `models.NAME` or `corpora.NAME`; paths are relative to the working folder. None for
    one that is made from none of these. A large file is read once: `digest` remembers it by size
    and times. Raises `BadCorpus` where a file cannot be read or a package is not installed.
    """
    if settings["source"] == "packages":
        versions = [f"{name}=={installed(name).version}" for name in settings["packages"]]
        return hashlib.sha256("\n".join(versions).encode()).hexdigest()
    total, found = hashlib.sha256(), _files(settings)
    try:
        for file, name in found:
            total.update(f"{name}:{digest(file, remembered=True)[0]}\n".encode())
    except OSError as error:
        raise BadCorpus(
            f"{error.filename} cannot be read: {error.strerror}.\n"
            "Correct its permissions, or the paths in the configuration."
        ) from None
    return total.hexdigest() if found else None


def _files(settings: Mapping) -> list[tuple[Path, str]]:
    if settings["source"] == "files":
        return list(named_files(settings["paths"]))
    if settings["source"] == "local":
        # Those that `ember.studies.shared.models.fetch` links.
        files = sorted(Path(settings["path"]).iterdir())
        return [(file, file.name) for file in files if file.is_file() and file.name != SIDECAR]
    copy = Path(settings.get("hub_id") or "")
    return [(copy, copy.name)] if settings["source"] == "hub" and copy.exists() else []
