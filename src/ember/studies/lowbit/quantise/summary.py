"""Errors of all formats in one table."""

from ember.studies.lowbit.quantise.tables import QUANTISED
from ember.studies.rows import records
from ember.studies.steps import makes


@makes(QUANTISED)
def join_formats(errors) -> list[dict]:
    """Rows of QUANTISED from the tables of the formats."""
    return records(errors, QUANTISED)
