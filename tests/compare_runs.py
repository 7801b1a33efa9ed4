"""Compares the tables of two commits' runs, column by column, and prints what differs.

    python tests/compare_runs.py BEFORE AFTER --again BEFORE_TOO [--rename old=new ...]

Each folder is the `results/` of one whole run. A column is deterministic if two runs of the same
commit (BEFORE and BEFORE_TOO) agree in it; such a column must be equal in AFTER. Columns that
measure time, memory or the machine differ between any two runs and are only counted. Tables are
matched by their path; `--rename` maps a path of BEFORE (or a part of one) to its name in AFTER.
With `--moved old=new` a renamed value or column counts as equal. Exits with 1 where they differ.
"""

import argparse
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq


def tables(folder: Path) -> dict[str, Path]:
    """The Parquet files below a folder, by path."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.parquet"))}


def columns(file: Path) -> dict[str, list]:
    return pq.ParquetFile(file).read().to_pydict()


def same(one, other) -> bool:
    """Equal values; NaN equals NaN."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


def replaced(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def difference(one: list, other: list) -> str:
    """The first difference of two columns, in words."""
    if len(one) != len(other):
        return f"{len(one)} rows before, {len(other)} after"
    places = [i for i, pair in enumerate(zip(one, other, strict=True)) if not same(*pair)]
    i = places[0]
    return f"{len(places)} of {len(one)} rows, first {i}: {one[i]!r} before, {other[i]!r} after"


def compare(before: Path, again: Path, after: Path, rename: dict[str, str], moved: dict[str, str]):
    """Lines about what differs, the number of equal columns, and of those that vary anyway."""
    ours, twin, theirs = tables(before), tables(again), tables(after)
    lines, equal, varying = [], 0, 0
    for name, file in ours.items():
        path = theirs.pop(replaced(name, rename), None)
        if path is None:
            lines.append(f"{name}: missing after")
            continue
        old, new = columns(file), columns(path)
        check = columns(twin[name]) if name in twin else {}
        for column, values in old.items():
            values = [replaced(v, moved) if isinstance(v, str) else v for v in values]
            found = new.pop(replaced(column, moved), None)
            if found is None:
                lines.append(f"{name}: column {column} is missing after")
            elif same(values, found):
                equal += 1
            elif column in check and same(old[column], check[column]):
                lines.append(f"{name}: {column}: {difference(values, found)}")
            else:
                varying += 1
        lines += [f"{name}: column {column} is new" for column in new]
    lines += [f"{name}: new" for name in theirs]
    return lines, equal, varying


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--again", type=Path, required=True, help="a second run of BEFORE's commit")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--moved", action="append", default=[], metavar="OLD=NEW")
    options = parser.parse_args()
    rename, moved = (
        dict(pair.split("=", 1) for pair in pairs) for pairs in (options.rename, options.moved)
    )
    lines, equal, varying = compare(options.before, options.again, options.after, rename, moved)
    print(*lines, sep="\n")
    print(
        f"{equal} columns are equal, {varying} vary between runs of one commit, {len(lines)} differ"
    )
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
