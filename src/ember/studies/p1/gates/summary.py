"""All gates in one table; one that does not hold stops every measurement."""

from collections.abc import Iterable
from pathlib import Path

from ember.records.tables import read_rows
from ember.studies.p1.gates.row import GateFailed
from ember.studies.p1.gates.tables import GATES
from ember.studies.steps import makes


@makes(GATES)
def check_gates(gates: Iterable[Path]) -> list[dict]:
    """The rows of all gates. Raises `GateFailed` naming those that do not hold."""
    rows = [row for path in gates for row in read_rows(path, GATES)]
    failed = [f"{row['gate']}: {row['detail']}" for row in rows if not row["passed"]]
    if failed:
        raise GateFailed("gates do not hold: " + "; ".join(failed) + ". Fix them and run again.")
    return rows
