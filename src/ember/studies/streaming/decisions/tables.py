"""Verdicts of the streaming programme, in the form of all decisions."""

from ember.records.schema import Schema
from ember.studies.paper.decisions.tables import DECISIONS

STREAMING_DECISIONS = Schema(
    "streaming_decisions",
    "Gates, goals and go/no-go rules of streaming, computed from its tables",
    DECISIONS.columns,
    key=DECISIONS.key,
)
