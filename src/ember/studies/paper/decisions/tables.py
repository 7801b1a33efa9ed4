"""Verdicts computed from tables, and what the paper still lacks (P1-11.1)."""

from ember.records.schema import EVIDENCE, Column, Schema

_SCALE = Column("scale", "str", "", "scale of the tables it was read from")

DECISIONS = Schema(
    "decisions",
    "Gates and go/no-go rules, computed from tables with thresholds from the configuration",
    (
        Column("decision", "str", "", "the rule"),
        Column("subject", "str", "", "what it was applied to"),
        Column("programme", "str", "", "the programme it steers"),
        Column("value", "float", "", "the quantity compared; its unit is in the detail"),
        Column("low", "float", "", "lower end of its interval or spread", nullable=True),
        Column("high", "float", "", "upper end of its interval or spread", nullable=True),
        Column("threshold", "float", "", "the configured threshold"),
        Column("verdict", "str", "", "what follows"),
        Column("detail", "str", "", "how it was computed"),
        EVIDENCE,
        _SCALE,
    ),
    key=("decision", "subject"),
)

READINESS = Schema(
    "readiness",
    "Every item of the paper: ready, or what is missing",
    (
        Column("item", "str", "", "figure, table or section of the paper"),
        Column("spec", "str", "", "requirement it answers"),
        Column(
            "status",
            "str",
            "",
            "ready: every part exists; partial: some parts exist; missing: none does",
            values=("ready", "partial", "missing"),
        ),
        Column("source", "str", "", "result files it is made of", nullable=True),
        Column("basis", "str", "", "measured or modelled, and with which weights", nullable=True),
        Column("missing", "str", "", "what is still to be made", nullable=True),
        _SCALE,
    ),
    key=("item",),
)
