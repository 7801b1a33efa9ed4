"""Gate: the main model is fixed, file by file, before anything is measured on it (P1-0.2)."""

import hashlib
from pathlib import Path

from ember.studies.p1.gates.row import passed
from ember.studies.p1.gates.tables import GATES, MODEL_SNAPSHOT
from ember.studies.steps import makes


@makes(GATES, MODEL_SNAPSHOT)
def check_snapshot(model: Path, *, name: str) -> tuple[list[dict], list[dict]]:
    """The gate's row and the `MODEL_SNAPSHOT` rows. Raises for a model that does not load."""
    from ember.model.folder import snapshot, weights_kind

    found = snapshot(Path(model))
    # The provenance of the job that made the directory is not part of the model.
    files = [file for file in found["files"] if file["file"] != "provenance.json"]
    digest = hashlib.sha256("".join(f"{f['file']}{f['sha256']}" for f in files).encode())
    revision = found.get("revision") or digest.hexdigest()
    weights = weights_kind(Path(model))
    about = {"model": name, "revision": revision, "weights": weights, "evidence": "measured"}
    about["parameters"] = found["parameters"]
    rows = [about | {key: file[key] for key in ("file", "bytes", "sha256")} for file in files]
    detail = (
        f"{name}: {found['architecture']}, {found['parameters']:,} parameters, {weights} weights, "
        f"{len(files)} files, revision {revision[:16]}"
    )
    return [passed("snapshot", detail)], rows
