"""A table as text for a terminal: what it is, its columns with units, its rows, its origin."""

from pathlib import Path

from ember.records.provenance import describe_machine
from ember.records.render import number
from ember.records.tables import read_rows, table_header, table_schema

_WIDEST = 40


def show(path: Path | str, rows: int = 20) -> str:
    """Name, meaning, columns, the first `rows` rows and provenance of a verified table.

    Raises what `read_rows` raises: nothing is shown of a file that cannot be trusted.
    """
    schema, table = table_schema(path), read_rows(path)
    columns = [
        [c.name, c.type + ("?" if c.nullable else ""), c.unit, c.meaning] for c in schema.columns
    ]
    shown = [[_cell(row[name]) for name in schema.names] for row in table[:rows]]
    parts = [
        f"{path}: {schema.name}, {len(table)} rows",
        schema.meaning,
        "",
        *_aligned(["column", "type", "unit", "meaning"], columns),
        "",
        *_aligned([_head(column) for column in schema.columns], shown),
    ]
    if len(table) > rows:
        parts.append(f"… {len(table) - rows} more rows (--rows {len(table)} shows all)")
    parts += ["", *_origin(table_header(path)["provenance"])]
    return "\n".join(parts)


def _head(column) -> str:
    return f"{column.name} [{column.unit}]" if column.unit else column.name


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    text = " ".join(str(value).split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["─" * width for width in widths], *rows]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _origin(made: dict | None) -> list[str]:
    if made is None:
        return ["no provenance: it was not written by a rule of the workflow"]
    source = made.get("source") or {}
    lines = {
        "rule": made.get("rule"),
        "made": f"{made.get('started')}, {made.get('seconds')} s, {made.get('threads')} threads",
        "inputs": ", ".join(item["path"] for item in made.get("inputs", ())) or "none",
        "params": made.get("params"),
        "config": made.get("config"),
        "seeds": made.get("seeds"),
        "code": made.get("code"),
        "commit": _commit(source),
        "ember": made.get("ember"),
        "versions": ", ".join(f"{k} {v}" for k, v in (made.get("versions") or {}).items()),
        "machine": describe_machine(made.get("hardware") or {}, details=True),
    }
    return ["provenance", *(f"  {key}: {value}" for key, value in lines.items())]


def _commit(source: dict) -> str:
    if source.get("commit"):
        return source["commit"] + (" (dirty)" if source.get("dirty") else "")
    return f"{source.get('note', 'unknown')} ({source.get('tree_sha256')})"
