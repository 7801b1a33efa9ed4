"""Verdicts computed from tables, and what the paper still lacks (P1-11.1)."""

from ember.records.schema import EVIDENCE, Schema, maybe, number, text

SCALE = text("scale", "scale of the tables it was read from")

DECISIONS = Schema(
    "decisions",
    "Gates and go/no-go rules, computed from tables with thresholds from the configuration",
    (
        text("decision", "the rule"),
        text("subject", "what it was applied to"),
        text("programme", "the programme it steers"),
        number("value", "", "the quantity compared; its unit is in the detail"),
        maybe("low", "", "lower end of its interval or spread"),
        maybe("high", "", "upper end of its interval or spread"),
        number("threshold", "", "the configured threshold"),
        text("verdict", "what follows"),
        text("detail", "how it was computed"),
        EVIDENCE,
        SCALE,
    ),
    key=("decision", "subject"),
)
