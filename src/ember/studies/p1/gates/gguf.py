"""Gate: the same weights exist as GGUF, and their hash is recorded (P1-0.3)."""

import logging
from pathlib import Path

from ember.records.provenance import digest
from ember.studies.p1.gates.row import passed
from ember.studies.p1.gates.tables import GATES
from ember.studies.steps import makes

log = logging.getLogger(__name__)


def exported(gguf: str | Path) -> tuple[Path | None, str | None]:
    """The file that the gate left in its directory, or None and why there is none."""
    file, skipped = Path(gguf) / "model.gguf", Path(gguf) / "SKIPPED"
    if file.is_file():
        return file, None
    return None, skipped.read_text().strip() if skipped.is_file() else f"{file} is not there"


@makes(GATES)
def check_gguf_export(model: Path, gguf: Path) -> list[dict]:
    """Export `model` to `gguf`/model.gguf, compare every tensor, and return the gate's row.

    Random weights have no checkpoint that another engine could read, so the gate is skipped and
    `gguf` says why. Raises for a tensor that differs from the model's.
    """
    from ember.model.folder import weights_kind
    from ember.model.gguf import check_gguf, export_gguf

    model, folder = Path(model), Path(gguf)
    folder.mkdir(parents=True, exist_ok=True)
    if weights_kind(model) == "random":
        reason = "random weights are drawn on load; there is no checkpoint to export"
        (folder / "SKIPPED").write_text(reason + "\n")
        return [passed("gguf", reason) | {"status": "skipped"}]
    path = folder / "model.gguf"
    export_gguf(model, model, path)
    check_gguf(path, model)
    sha256, size = digest(path)
    log.info("%s: %d bytes, every tensor equal to the model's", path, size)
    return [passed("gguf", f"{path.name}: {size:,} bytes, sha256 {sha256}")]
