"""Gate: products stand under results/ and are written whole or not at all (P1-0.4)."""

from pathlib import Path

from ember.records.atomic import atomic_file
from ember.studies.p1.gates.row import GateFailed, passed
from ember.studies.p1.gates.tables import GATES
from ember.studies.steps import makes


class _Interrupted(Exception):
    pass


@makes(GATES)
def check_outputs(gate: Path) -> list[dict]:
    """The gate's row. Raises `GateFailed` if an interrupted write leaves anything
    beside the file `gate`."""
    folder = Path(gate).parent
    probe = folder / "probe.txt"
    before = set(folder.iterdir())
    try:
        with atomic_file(probe) as part:
            Path(part).write_text("half")
            raise _Interrupted
    except _Interrupted:
        left = set(folder.iterdir()) - before
    if left:
        raise GateFailed(
            f"an interrupted write left {', '.join(sorted(p.name for p in left))} in {folder}. "
            "Put results on a file system with atomic renames."
        )
    with atomic_file(probe) as part:
        Path(part).write_text("whole")
    whole = probe.read_text() == "whole"
    probe.unlink()
    if not whole:
        raise GateFailed(f"a file written to {folder} reads back differently. Check the disk.")
    return [passed("outputs", "products stand under results/; interrupted writes leave nothing")]
