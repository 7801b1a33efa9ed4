"""A table as CSV, Markdown and LaTeX, with units in the headers and the schema's words as caption.

CSV keeps full precision; Markdown and LaTeX round to four significant digits.
Missing values are empty in CSV and a dash elsewhere.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ember.records.atomic import write_text
from ember.records.schema import Column, Schema

MISSING = "–"


def render(
    rows: Sequence[Mapping], schema: Schema, stem: Path | str, provenance: Mapping | None = None
) -> list[Path]:
    """Write the rows as `<stem>.csv`, `.md` and `.tex`, each atomically.

    The table's Parquet belongs beside them: it is what carries their provenance.
    """
    stem, written = Path(stem), []
    for name, writer in (("csv", _csv), ("md", _markdown), ("tex", _latex)):
        text = writer(rows, schema, stem, provenance or {})
        written.append(write_text(stem.with_name(f"{stem.name}.{name}"), text))
    return written


def header(column: Column) -> str:
    """Name in words, unit in parentheses: prefill_ms_median becomes "prefill median (ms)"."""
    words = column.name.split("_")
    if not column.unit:
        return " ".join(words)
    unit = column.unit.replace("/", "_per_").replace(" ", "_").split("_")
    for start in range(len(words) - len(unit) + 1):
        if words[start : start + len(unit)] == unit and len(words) > len(unit):
            words = words[:start] + words[start + len(unit) :]
            break
    return f"{' '.join(words)} ({column.unit})"


def number(value: float) -> str:
    """Four significant digits, without an exponent where a reader needs none."""
    if value == 0:
        return "0"
    digits = 3 - math.floor(math.log10(abs(value)))
    if digits > 9 or digits < -8:
        return f"{value:.3e}"
    return f"{value:.{max(digits, 0)}f}"


def caption(schema: Schema, provenance: Mapping) -> str:
    """The schema's meaning, and the scale where the configuration names one."""
    scale = (provenance.get("config") or {}).get("scale")
    text = schema.meaning.rstrip(".") + "."
    return f"{text} Scale: {scale}." if scale else text


def _csv(rows, schema, stem, provenance) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_header(column) for column in schema.columns])
    writer.writerows(_cells(rows, schema, _exact))
    return out.getvalue()


def _csv_header(column: Column) -> str:
    # Names that hold their unit stay as they are, for programs that read them.
    held = f"_{column.unit.replace('/', '_per_')}_" in f"_{column.name}_"
    return column.name if held or not column.unit else f"{column.name} ({column.unit})"


def _markdown(rows, schema, stem, provenance) -> str:
    def cell(value):
        text = re.sub(r"([\\|*_`<>\[\]])", r"\\\1", _rounded(value))
        return text.replace("\r", " ").replace("\n", " ")

    lines = [
        f"**{schema.name}.** {caption(schema, provenance)}",
        "",
        _line(header(column).replace("|", "\\|") for column in schema.columns),
        _line("---:" if column.type in ("int", "float") else "---" for column in schema.columns),
        *(_line(row) for row in _cells(rows, schema, cell)),
        "",
        *(f"- {header(column)}: {column.meaning}" for column in schema.columns if column.meaning),
        "",
        _origin(stem, provenance),
    ]
    return "\n".join(lines) + "\n"


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex(rows, schema, stem, provenance) -> str:
    align = "".join("r" if column.type in ("int", "float") else "l" for column in schema.columns)
    cells = _cells(rows, schema, lambda value: latex(_rounded(value)))
    lines = [
        f"% {_origin(stem, provenance)}",
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{latex(caption(schema, provenance))}}}",
        f"  \\label{{tab:{stem.name.replace('_', '-')}}}",
        f"  \\begin{{tabular}}{{{align}}}",
        "    \\toprule",
        f"    {' & '.join(latex(header(column)) for column in schema.columns)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(row)} \\\\" for row in cells),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "\n": " ",
    "\r": " ",
} | {character: f"\\{character}" for character in "&%$#_"}


def latex(text: str) -> str:
    """Text with everything LaTeX would act on escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _origin(stem: Path, provenance: Mapping) -> str:
    name = f"{stem.name}.parquet"
    rule = provenance.get("rule")
    made = f", made by rule {rule}" if rule else ""
    return f"From {name}{made}; `ember why` tells where it comes from."


def _cells(rows, schema: Schema, cell: Callable) -> list[list[str]]:
    return [[cell(row[name]) for name in schema.names] for row in rows]


def _exact(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _rounded(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or MISSING
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else str(value)
