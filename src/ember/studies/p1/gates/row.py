"""One gate is one row; a gate that does not hold stops the workflow with its detail."""

from ember.records.errors import EmberError


class GateFailed(EmberError):
    """A hard gate does not hold."""


def passed(gate: str, detail: str) -> dict:
    """The row of a gate that holds."""
    return _row(gate, "ok", detail)


def skipped(gate: str, reason: str) -> dict:
    """The row of a gate that cannot apply here, and why."""
    return _row(gate, "skipped", reason)


def _row(gate: str, status: str, detail: str) -> dict:
    return {
        "gate": gate,
        "status": status,
        "passed": True,
        "detail": detail,
        "evidence": "measured",
    }
