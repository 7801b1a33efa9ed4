"""Parquet tables, checked against their schema on write and on read.

A file carries its schema, row count, a checksum of its content and the provenance of the job that
wrote it, all in one signed entry of its metadata. Reading verifies them: a file that is missing,
truncated, foreign, of another schema or damaged is an error that names the file and the remedy.

Nullable values: `read_rows` gives None; `read_table` gives pandas' missing values (Int64, boolean).
pandas is imported only where a DataFrame is asked for.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ember.records import errors
from ember.records.atomic import atomic_file
from ember.records.remedy import again, remake
from ember.records.schema import Column, Schema, differences

FORMAT = 1
_HEADER, _SIGNATURE = b"ember", b"ember-sha256"
_MAGIC = b"PAR1"
_ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int64()),
    "list[float]": pa.list_(pa.float64()),
}
_INT64 = 2**63


def write_table(path: Path | str, rows, schema: Schema, provenance: dict | None = None) -> Path:
    """Write rows (mappings) as a table of `schema`, atomically.

    Missing values are None; a NaN in a nullable float column counts as missing. Raises `BadRow`
    naming the column and the first offending row: unknown or missing column, wrong type, NaN,
    infinity, null, value that is not allowed, key that stands twice.
    """
    path = Path(path)
    columns = _columns(path, rows, schema)
    checked = [_check(path, schema, column, columns[column.name]) for column in schema.columns]
    table = pa.Table.from_arrays(checked, schema=_arrow_schema(schema))
    _check_key(path, schema, table)
    header = {
        "format": FORMAT,
        "schema": schema.to_dict(),
        "rows": table.num_rows,
        "content_sha256": content_sha256(table),
        "provenance": provenance,
    }
    text = json.dumps(header, allow_nan=False).encode()
    signature = hashlib.sha256(text).hexdigest().encode()
    table = table.replace_schema_metadata({_HEADER: text, _SIGNATURE: signature})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_table(path: Path | str | Sequence[Path | str], schema: Schema | None = None):
    """The table as a DataFrame, verified, and of `schema` where one is given; of some, one after
    the other.

    Lists come as Python lists. Raises `MissingTable`, `TruncatedTable`, `ForeignTable`,
    `SchemaMismatch` or `DamagedTable`.
    """
    import pandas as pd

    if not isinstance(path, str | Path):
        return pd.concat([read_table(one, schema) for one in path], ignore_index=True)
    table, found = _read(Path(path), schema)
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    data = {}
    for column in found.columns:
        array = table.column(column.name)
        if column.type.startswith("list"):
            # Not a view: numpy arrays in cells compare in surprising ways.
            data[column.name] = pd.Series(array.to_pylist(), dtype=object)
        elif column.nullable and array.type in nullable:
            data[column.name] = array.to_pandas(types_mapper=nullable.get)
        else:
            data[column.name] = array.to_pandas()
    return pd.DataFrame(data)


def read_rows(path: Path | str, schema: Schema | None = None) -> list[dict]:
    """The table as plain Python rows, verified like `read_table`, without importing pandas."""
    return _read(Path(path), schema)[0].to_pylist()


def verify_table(path: Path | str) -> None:
    """What `read_table` checks, without handing out the rows."""
    _read(Path(path), None)


def table_schema(path: Path | str) -> Schema:
    """The schema that a table was written with (reads the metadata only)."""
    return Schema.from_dict(table_header(path)["schema"])


def table_provenance(path: Path | str) -> dict | None:
    """The provenance that a table was written with; None if it had none."""
    return table_header(path)["provenance"]


def table_header(path: Path | str) -> dict:
    """What a table says of itself: format, schema, rows, content_sha256, provenance."""
    path = Path(path)
    with _opened(path) as file:
        return _header(path, file.schema_arrow.metadata)


def content_sha256(table: pa.Table) -> str:
    """Hash of names, types, nulls and values, whatever the file's encoding or chunks."""
    digest = hashlib.sha256()
    for field in table.schema:
        # Not the list's own type: its item is called differently before and after Parquet.
        is_list = pa.types.is_list(field.type)
        kind = f"list[{field.type.value_type}]" if is_list else str(field.type)
        digest.update(f"{field.name}:{kind}:{table.num_rows};".encode())
        _hash_array(digest, table.column(field.name).combine_chunks())
    return digest.hexdigest()


# Reading


def _read(path: Path, schema: Schema | None) -> tuple[pa.Table, Schema]:
    with _opened(path) as file:
        header = _header(path, file.schema_arrow.metadata)
        found = Schema.from_dict(header["schema"])
        _check_schema(path, found, schema)
        try:
            table = file.read()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(path, f"its data cannot be decoded ({_first_line(error)})") from None
    if table.num_rows != header["rows"]:
        raise _damaged(path, f"it holds {table.num_rows} rows, written were {header['rows']}")
    if not table.schema.equals(_arrow_schema(found)):
        raise _damaged(path, "its columns are not those it declares")
    if content_sha256(table) != header["content_sha256"]:
        raise _damaged(path, "its content does not match its checksum")
    return table, found


def _opened(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        what = "is a directory, not a table" if path.is_dir() else "does not exist"
        raise errors.MissingTable(f"{path} {what}\nmake it with `{remake(path)}`")
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_MAGIC)))
        tail = file.read()
    if not _MAGIC.startswith(head):
        raise errors.ForeignTable(f"{path} is not a Parquet file\nif ember made it, {again(path)}")
    if size < 3 * len(_MAGIC) or tail != _MAGIC:
        raise errors.TruncatedTable(
            f"{path} is truncated: it ends after {size} bytes, without a Parquet footer\n"
            f"{again(path)}"
        )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, f"its footer cannot be read ({_first_line(error)})") from None


def _header(path: Path, metadata: Mapping[bytes, bytes] | None) -> dict:
    text = (metadata or {}).get(_HEADER)
    if text is None:
        raise errors.ForeignTable(
            f"{path} was not written by ember: it has no declared schema\n"
            f"write it with ember.records.tables.write_table; if a rule makes it, {again(path)}"
        )
    if hashlib.sha256(text).hexdigest().encode() != metadata.get(_SIGNATURE):
        raise _damaged(path, "its schema or provenance does not match its checksum")
    header = json.loads(text)
    if header["format"] != FORMAT:
        raise errors.SchemaMismatch(
            f"{path} has table format {header['format']}, this ember reads {FORMAT}\n{again(path)}"
        )
    return header


def _check_schema(path: Path, found: Schema, wanted: Schema | None) -> None:
    phrases = differences(found, wanted) if wanted else []
    if phrases:
        raise errors.SchemaMismatch(
            f"{path} is not a table of schema {wanted.name!r}: {'; '.join(phrases)}\n"
            f"it was written by other code than reads it: {again(path)}"
        )


def _damaged(path: Path, why: str) -> errors.DamagedTable:
    return errors.DamagedTable(f"{path} is damaged: {why}\n{again(path)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")


# Content


def _arrow_schema(schema: Schema) -> pa.Schema:
    return pa.schema([pa.field(c.name, _ARROW[c.type], c.nullable) for c in schema.columns])


def _hash_array(digest, array: pa.Array) -> None:
    digest.update(f"{len(array)} values, {array.null_count} nulls;".encode())
    if array.null_count:
        # What lies under a null is undefined: hash where the nulls are, then the rest.
        digest.update(np.packbits(_numbers(array.is_null())).tobytes())
        array = array.drop_null()
    if pa.types.is_list(array.type):
        _hash_array(digest, pc.list_value_length(array))
        _hash_array(digest, array.flatten())
    elif pa.types.is_string(array.type):
        _hash_array(digest, pc.binary_length(array))
        offsets = np.frombuffer(array.buffers()[1] or b"\0" * 4, np.int32)[array.offset :]
        if len(array) and array.buffers()[2] is not None:
            digest.update(memoryview(array.buffers()[2])[offsets[0] : offsets[len(array)]])
    else:
        digest.update(_numbers(array).tobytes())


def _numbers(array: pa.Array) -> np.ndarray:
    """Values of an array without nulls, little-endian. (Its own `to_numpy` imports pandas.)"""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    kind = np.dtype(str(array.type).replace("double", "float64"))
    if not len(array):
        return np.empty(0, kind)
    values = np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
    return values.astype(kind.newbyteorder("<"), copy=False)


# Writing


def _columns(path: Path, rows, schema: Schema) -> dict[str, list]:
    """Values by column, as plain Python with None for missing."""
    if isinstance(rows, Mapping):
        raise errors.BadRow(f"{path}: one mapping given for the rows\npass a list of rows")
    columns: dict[str, list] = {name: [] for name in schema.names}
    wanted = set(schema.names)
    for number, row in enumerate(rows):
        if row.keys() != wanted:
            _check_names(path, schema, row.keys(), f"row {number} ({_excerpt(row)})")
        for name, values in columns.items():
            values.append(_plain(row[name]))
    return columns


def _plain(value):
    """numpy and torch scalars as Python's, arrays and tuples as lists."""
    if type(value) in (str, int, float, bool, list) or value is None:
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "item"):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _check_names(path: Path, schema: Schema, names: Iterable[str], where: str) -> None:
    names = list(names)
    unknown = [str(name) for name in names if name not in schema.names]
    missing = [name for name in schema.names if name not in names]
    if unknown or missing:
        faults = [f"unknown column {', '.join(unknown)}"] if unknown else []
        faults += [f"missing column {', '.join(missing)}"] if missing else []
        raise errors.BadRow(
            f"{path}, table {schema.name}, {where}: {' and '.join(faults)}\n"
            f"the schema declares {', '.join(schema.names)}"
        )


def _check(path: Path, schema: Schema, column: Column, values: list) -> pa.Array:
    checked = [None] * len(values)
    for number, value in enumerate(values):
        try:
            checked[number] = _checked(column, value)
        except ValueError as error:
            raise errors.BadRow(
                f"{path}, table {schema.name}, column {column.name}, row {number}: {error}\n"
                f"{column.name} is declared {_declared(column)}"
            ) from None
    try:
        return pa.array(checked, _ARROW[column.type])
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise errors.BadTable(
            f"{path}, table {schema.name}, column {column.name}: {_first_line(error)}\n"
            f"{column.name} is declared {_declared(column)}"
        ) from None


def _checked(column: Column, value):
    if value is None or (column.nullable and column.type == "float" and value != value):
        if column.nullable:
            return None
        raise ValueError("it is null")
    if column.type.startswith("list"):
        if not isinstance(value, list):
            raise ValueError(f"{_excerpt(value)} is {type(value).__name__}, not {column.type}")
        return _list(column.type[5:-1], value)
    value = _scalar(column.type, value)
    if column.values and value not in column.values:
        raise ValueError(f"{value!r} is not one of {', '.join(column.values)}")
    return value


def _list(kind: str, values: list) -> list:
    types = set(map(type, values))
    # Lists are long (tokens): look at their items one by one only if something is unusual.
    if kind == "int" and types == {int} and -_INT64 <= min(values) <= max(values) < _INT64:
        return values
    if kind == "float" and types == {float} and all(map(math.isfinite, values)):
        return values
    return [_scalar(kind, _plain(value)) for value in values]


def _scalar(kind: str, value):
    if kind == "float" and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(f"{_excerpt(value)} does not fit a float") from None
    if type(value).__name__ != kind:
        raise ValueError(f"{_excerpt(value)} is {type(value).__name__}, not {kind}")
    if kind == "float" and not math.isfinite(value):
        raise ValueError("it is NaN" if math.isnan(value) else "it is infinite")
    if kind == "int" and not -_INT64 <= value < _INT64:
        raise ValueError(f"{value} does not fit 64 bits")
    if kind == "str" and not value.isascii() and value != value.encode(errors="ignore").decode():
        raise ValueError(f"{_excerpt(value)} is not valid Unicode text")
    return value


def _check_key(path: Path, schema: Schema, table: pa.Table) -> None:
    if not schema.key:
        return
    seen: dict[str, int] = {}
    columns = (table.column(name).to_pylist() for name in schema.key)
    for number, values in enumerate(zip(*columns, strict=True)):
        key = repr(values)
        if key in seen:
            named = ", ".join(f"{n}={v!r}" for n, v in zip(schema.key, values, strict=True))
            raise errors.BadRow(
                f"{path}, table {schema.name}, row {number}: "
                f"the key {named} already stands in row {seen[key]}\n"
                f"rows are unique in {', '.join(schema.key)}"
            )
        seen[key] = number


def _declared(column: Column) -> str:
    text = column.type + (f" [{column.unit}]" if column.unit else "")
    text += ", may be null" if column.nullable else ", never null"
    return text + (f", one of {', '.join(column.values)}" if column.values else "")


def _excerpt(value) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
