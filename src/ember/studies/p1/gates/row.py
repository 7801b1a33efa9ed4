"""One gate is one row; a gate that does not hold stops the workflow with its detail."""

from ember.records.errors import EmberError


class GateFailed(EmberError):
    """A hard gate does not hold."""


def passed(gate: str, detail: str) -> dict:
    """The row of a gate that holds."""
    row = {"gate": gate, "status": "ok", "passed": True}
    return row | {"detail": detail, "evidence": "measured"}
