"""What the paper still lacks (P1-11.1)."""

from ember.records.schema import Schema, text

READINESS = Schema(
    "readiness",
    "Every item of the paper: ready, or what is missing",
    (
        text("item", "figure, table or section of the paper"),
        text("spec", "requirement it answers"),
        text(
            "status",
            "ready: every part exists; partial: some parts exist; missing: none does",
            values=("ready", "partial", "missing"),
        ),
        text("source", "result files it is made of", nullable=True),
        text("basis", "measured or modelled, and with which weights", nullable=True),
        text("missing", "what is still to be made", nullable=True),
        text("scale", "scale of the tables it was read from"),
    ),
    key=("item",),
)
