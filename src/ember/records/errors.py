"""Errors that users see. The first line of a message is the cause, the rest says what to do.

The workflow and the command line catch `EmberError` and show its message without a traceback; every
public exception of the library derives from it.
"""

import difflib
from collections.abc import Iterable


class EmberError(Exception):
    """A problem whose message names the cause and the remedy."""


def nearest(name: object, known: Iterable[str]) -> str:
    """For the end of a message about an unknown name: the nearest of those known, or all."""
    known = list(known)
    if close := difflib.get_close_matches(str(name), known, n=1, cutoff=0.4):
        return f" Did you mean {close[0]!r}?"
    return f" Valid here: {', '.join(known)}." if known else " Nothing is valid here."


class CannotWrite(EmberError):
    """A product cannot be written: no permission, no space, no such place."""


class BadTable(EmberError):
    """A table that cannot be written or read as declared."""


class BadSchema(BadTable):
    """A schema that contradicts itself."""


class BadRow(BadTable):
    """Rows that break their schema; the message names the column and the first offending row."""


class MissingTable(BadTable):
    """The file is not there."""


class TruncatedTable(BadTable):
    """A Parquet file that ends early: its writer or a copy of it was interrupted."""


class ForeignTable(BadTable):
    """Not Parquet, or Parquet that was not written by `ember.records.tables`."""


class SchemaMismatch(BadTable):
    """A table of another schema, or of another version of it."""


class DamagedTable(BadTable):
    """Complete in form, but the content is not what was written."""


class BadProvenance(EmberError):
    """No provenance where there should be some, or one that cannot be read."""
