"""Declared tables: every column has a name, a type, a unit and a meaning.

    PROFILE = Schema(
        "rollout_profile",
        "Time of each phase of a rollout",
        (
            Column("context", "int", "tokens", "prompt length"),
            Column("prefill_ms", "float", "ms", "time of the prefill"),
            EVIDENCE,
        ),
        key=("context",),
    )

Types: str, int (64 bit), float (64 bit, finite), bool, list[int], list[float]. A column holds no
nulls unless it is declared nullable. Rows are unique in the `key` columns. No third-party imports.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ember.records.errors import BadSchema

TYPES = ("str", "int", "float", "bool", "list[int]", "list[float]")


@dataclass(frozen=True)
class Column:
    """A column. `values`: the only ones allowed, for a str column (empty: any)."""

    name: str
    type: str
    unit: str = ""
    meaning: str = ""
    nullable: bool = False
    values: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.name:
            raise BadSchema("a column without a name; give it one")
        if self.type not in TYPES:
            raise BadSchema(
                f"column {self.name}: unknown type {self.type!r}; choose one of {', '.join(TYPES)}"
            )
        object.__setattr__(self, "values", tuple(self.values))
        if self.values and self.type != "str":
            raise BadSchema(f"column {self.name}: allowed values are for str columns only")


@dataclass(frozen=True)
class Schema:
    """A table: its name, what it says, its columns in order, and those that identify a row."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "key", tuple(self.key))
        if not self.name or not self.columns:
            raise BadSchema(f"schema {self.name!r}: needs a name and at least one column")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise BadSchema(f"schema {self.name}: declared twice: {', '.join(twice)}")
        unknown = [name for name in self.key if name not in self.names]
        if unknown:
            raise BadSchema(f"schema {self.name}: key names no column: {', '.join(unknown)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of that name. Raises `BadSchema` naming those there are."""
        for column in self.columns:
            if column.name == name:
                return column
        known = ", ".join(self.names)
        raise BadSchema(f"schema {self.name} has no column {name!r}\nit has {known}")

    def to_dict(self) -> dict:
        """Plain data, as kept in a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping) -> "Schema":
        """The inverse of `to_dict`."""
        columns = tuple(Column(**column) for column in data["columns"])
        return cls(data["name"], data["meaning"], columns, tuple(data["key"]))


def differences(found: Schema, wanted: Schema) -> list[str]:
    """What keeps a table of schema `found` from being read as `wanted`, one phrase each.

    Meanings and units may be reworded; names, types, nullability, order and key may not change.
    """
    if found.name != wanted.name:
        return [f"it holds the table {found.name!r}, not {wanted.name!r}"]
    lacks = [name for name in wanted.names if name not in found.names]
    extra = [name for name in found.names if name not in wanted.names]
    phrases = [f"it lacks the column {name}" for name in lacks]
    phrases += [f"it has the undeclared column {name}" for name in extra]
    for column in wanted.columns:
        if column.name not in found.names:
            continue
        there = found.column(column.name)
        if there.type != column.type:
            phrases.append(f"column {column.name} is {there.type}, declared {column.type}")
        if there.nullable and not column.nullable:
            phrases.append(f"column {column.name} may hold nulls, declared without")
    if not phrases and found.names != wanted.names:
        phrases.append("its columns stand in another order")
    if not phrases and found.key != wanted.key:
        phrases.append(f"its key is {', '.join(found.key)}, declared {', '.join(wanted.key)}")
    return phrases


# Columns in short: most tables are made of these.


def text(name: str, meaning: str, *, values: tuple[str, ...] = (), nullable: bool = False):
    """A column of strings, `values` the only ones allowed."""
    return Column(name, "str", "", meaning, nullable, values)


def integer(name: str, unit: str, meaning: str, *, nullable: bool = False) -> Column:
    """A column of whole numbers."""
    return Column(name, "int", unit, meaning, nullable)


def number(name: str, unit: str, meaning: str) -> Column:
    """A column of numbers."""
    return Column(name, "float", unit, meaning)


def maybe(name: str, unit: str, meaning: str) -> Column:
    """A column of numbers, null where there is none."""
    return Column(name, "float", unit, meaning, nullable=True)


def flag(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """A column of truth values."""
    return Column(name, "bool", "", meaning, nullable)


SPREAD = ("median", "min", "max", "p10", "p90")
STATISTICS = {
    "median": "median",
    "mean": "mean",
    "std": "standard deviation (n - 1)",
    "cv": "standard deviation / mean",
    "min": "least",
    "max": "greatest",
    "p10": "10th percentile; null of fewer than ten runs",
    "p50": "50th percentile, the median again",
    "p90": "90th percentile; null of fewer than ten runs",
}


def spread(
    name: str, unit: str, meaning: str, statistics: tuple[str, ...] = SPREAD, kind=number
) -> tuple[Column, ...]:
    """Columns `name`_median and so on over the runs; `kind` is `number` or `maybe`.

    Those that some numbers of runs do not have are `maybe` in any case.
    """
    return tuple(
        (maybe if key in ("std", "cv", "p10", "p90") else kind)(
            f"{name}_{key}", "" if key == "cv" else unit, f"{meaning}, {STATISTICS[key]}"
        )
        for key in statistics
    )


def estimate(
    name: str, unit: str, meaning: str, over: str = "streams", kind=number
) -> tuple[Column, ...]:
    """Columns of a number and the ends of its 95 % interval over streams, seeds or the like,
    `name`_low and `name`_high; `kind` is `number` or `maybe`."""
    return (
        kind(name, unit, meaning),
        kind(f"{name}_low", unit, f"lower end of its 95 % interval over {over}"),
        kind(f"{name}_high", unit, "upper end"),
    )


EVIDENCE = text(
    "evidence",
    "measured: timed or counted here; modelled: computed from measured tables; "
    "reference: quoted from elsewhere",
    values=("measured", "modelled", "reference"),
)
WEIGHTS = text(
    "weights",
    "trained: in this workflow; random: times an engine, supports no quality claim; "
    "pretrained: someone else's checkpoint",
    values=("trained", "random", "pretrained"),
)
STATUS = text(
    "status",
    "ok, skipped (something is not there) or failed; the reason says why",
    values=("ok", "skipped", "failed"),
)
REASON = text("reason", "why a row is not ok", nullable=True)
OUTCOME = (STATUS, REASON)

DEVICE = text("device", "where it ran")
DEVICE_NAME = text("device_name", "name of the device")
DTYPE = text("dtype", "number format of weights and cache")
MODEL = text("model", "name of the model")
# Groups of them, as tables end.
SOURCE = (MODEL, WEIGHTS, EVIDENCE)
MEASURED_ON = (DEVICE, DTYPE, *SOURCE)
MACHINE = (DEVICE, DEVICE_NAME, DTYPE, *SOURCE)
ADAPTED_ON = (DTYPE, MODEL, WEIGHTS, DEVICE, EVIDENCE)
