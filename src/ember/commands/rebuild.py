"""`ember rebuild`: published tables and figures once more, from the raw tables beside them.

A folder holds products and tables of `results/`, laid out as there. Each says in its provenance
which step made it, from which tables and with which parameters; the step runs again, as it is now,
on the tables of the folder, and what it makes is compared with what was published. Raw is what no
tables of the folder lead to.
"""

import inspect
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from ember.records.errors import EmberError, MissingTable, SchemaMismatch

SCRIPTS = ("study.py", "publish.py", "plot.py")
ARITHMETIC = ("summary", "figure", "cost")  # modules of steps that neither measure nor train
CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}


@dataclass(frozen=True)
class Outcome:
    """What became of a product: equal, differs, historical (tables of an earlier schema, or a step
    that is gone), incomplete (its raw tables are not here)."""

    product: str
    status: str
    detail: str = ""


@dataclass
class Folder:
    """A folder of published files, and where what is made of them goes."""

    root: Path
    out: Path
    made: dict[str, Outcome] = field(default_factory=dict)

    def rebuild(self) -> list[Outcome]:
        """Makes all that the folder holds raw tables for; an outcome for each product."""
        for ending in ("parquet", "png"):
            for path in sorted(self.root.rglob(f"*.{ending}")):
                self._make(path.relative_to(self.root).as_posix())
        return [one for one in self.made.values() if one.status != "raw"]

    def _make(self, name: str) -> Outcome:
        if name not in self.made:
            self.made[name] = Outcome(name, "raw")  # also ends a circle
            self.made[name] = self._made(name)
        return self.made[name]

    def _made(self, name: str) -> Outcome:
        from ember.records.provenance import provenance_of

        about = provenance_of(self.root / name) or {}
        params = about.get("params") or {}
        step, script = params.get("step"), params.get("script")
        inputs = [entry["path"] for entry in about.get("inputs", ())]
        if script not in SCRIPTS or not step or step.split(".")[-2] not in ARITHMETIC:
            raw = name.endswith(".parquet")
            return Outcome(name, *(("raw",) if raw else ("incomplete", "does not say its step")))
        if not any(path.endswith(".parquet") for path in inputs):
            return Outcome(name, "raw")  # drawn from the code
        if missing := [path for path in inputs if self._here(path) is None]:
            if script == "study.py":
                return Outcome(name, "raw")
            return Outcome(name, "incomplete", f"made from {', '.join(missing)}, not here")
        try:
            return self._again(name, about, step, inputs)
        except (SchemaMismatch, MissingTable) as error:
            return Outcome(name, "historical", str(error).splitlines()[0])

    def _here(self, path: str) -> str | None:
        """Name in the folder of a file that lay in `results/`, None if it is not there."""
        name = _name(path)
        return name if (self.root / name).exists() else None

    def _again(self, name: str, about: dict, step: str, inputs: list[str]) -> Outcome:
        from ember.records.provenance import describe, source_root, source_state, versions
        from ember.records.tables import read_table, write_table
        from ember.studies.steps import arguments, find
        from ember.studies.style import save, small_print

        try:
            function = find(step)
        except (ImportError, AttributeError):
            return Outcome(name, "historical", f"there is no step {step} any more")
        params, given = about["params"], _named(function, about, inputs)
        newest = {path: str(self._newest(path)) for path in inputs}
        named = {
            argument: newest[value] if isinstance(value, str) else [newest[path] for path in value]
            for argument, value in given.items()
        }
        job = SimpleNamespace(threads=1, output={}, input=named, params=params)
        known = arguments(function, job).keys() | getattr(function, "reads", {}).keys()
        if lacking := _required(function) - known:
            return Outcome(name, "incomplete", f"does not say its {', '.join(sorted(lacking))}")
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        read = [describe(file) | {"path": path} for path, file in newest.items()]
        stamp = about | {"rule": "ember rebuild", "inputs": read, "arguments": given}
        stamp |= {"source": source_state(source_root()), "versions": versions()}
        if name.endswith(".parquet"):
            outputs = [_name(path) for path in about["outputs"] if path.endswith(".parquet")]
            place, rows = outputs.index(name), function(**arguments(function, job))
            schema = function.makes[place]
            write_table(
                target, rows if len(function.makes) == 1 else list(rows)[place], schema, stamp
            )
            return Outcome(name, *_compare(self.root / name, target, schema.key))
        tables = {key: read_table(named[key], schema) for key, schema in function.reads.items()}
        figure, caption, *drawn = function(**arguments(function, job) | tables)
        words = small_print(drawn or tables.values(), params["scale"])
        save(figure, target.with_suffix(""), caption, stamp, words)
        return Outcome(name, *_compare_captions(self.root / name, target))

    def _newest(self, path: str) -> Path:
        """A table as made again here, or as published where it is raw."""
        name = self._here(path)
        if not name.endswith(".parquet"):
            return self.root / name
        if self._make(name).status == "historical":
            raise SchemaMismatch(f"{name}, which it is made from, is historical")
        return self.out / name if (self.out / name).is_file() else self.root / name


def _name(path: str) -> str:
    """Name below `results/`."""
    return path.rpartition("results/")[2]


def _required(function) -> set[str]:
    """Arguments that a step cannot do without."""
    wanted = inspect.signature(function).parameters.values()
    return {one.name for one in wanted if one.default is one.empty}


def _named(function, about: Mapping, inputs: list[str]) -> dict[str, str | list[str]]:
    """Inputs by the step's arguments. Older files do not say them: there the order tells."""
    if "arguments" in about:
        return about["arguments"]
    params = about["params"]
    known = {*params, *params.get("settings", ()), *params.get("runtime", ())}
    names = [name for name in inspect.signature(function).parameters if name not in known]
    if len(names) != len(inputs):
        raise SchemaMismatch(f"its step reads {len(names)} tables, it was made from {len(inputs)}")
    return dict(zip(names, inputs, strict=True))


def _compare(published: Path, made: Path, key: tuple[str, ...]) -> tuple[str, str]:
    """Status and detail of a table, over the columns that both have."""
    from ember.records.tables import read_rows

    before, now = read_rows(published), read_rows(made)
    if len(before) != len(now):
        return "differs", f"{len(now)} rows, published are {len(before)}"
    if not now:
        return "equal", "no rows"
    shared = [name for name in now[0] if name in before[0]]
    if set(key) <= set(shared):
        before, now = (
            sorted(rows, key=lambda row: str([row[name] for name in key])) for rows in (before, now)
        )
    for was, is_now in zip(before, now, strict=True):
        for name in shared:
            if not _same(was[name], is_now[name]):
                where = ", ".join(str(is_now[part]) for part in key)
                return "differs", f"{name} of {where}: {is_now[name]}, published {was[name]}"
    changed = sorted({*before[0]} ^ {*now[0]})
    but = f"; columns that only one has: {', '.join(changed)}" if changed else ""
    return "equal", f"{len(now)} rows{but}"


def _same(one, other) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, **CLOSE)
    return one == other


def _compare_captions(published: Path, made: Path) -> tuple[str, str]:
    """Status and detail of a figure: captions have the numbers in them."""
    before, now = (
        path.with_name(f"{path.stem}.caption.md").read_text("utf-8").split()
        for path in (published, made)
    )
    for place, (was, is_now) in enumerate(zip(before, now, strict=False)):
        if was != is_now:
            words = " ".join(now[max(0, place - 4) : place + 4])
            return "differs", f"caption: … {words} …, published {was}"
    same = len(before) == len(now)
    return ("equal", "caption") if same else ("differs", "caption: longer or shorter")


def add(commands) -> None:
    parser = commands.add_parser(
        "rebuild", help="published tables and figures again, from the raw tables beside them"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="e.g. docs/measured/h200x2")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep what is made there")
    parser.set_defaults(run=_run)


def _run(options) -> tuple[str, int]:
    if not options.folder.is_dir():
        raise EmberError(f"{options.folder} is no folder\nname one below docs/measured")
    with tempfile.TemporaryDirectory() as scratch:
        found = Folder(options.folder, options.out or Path(scratch)).rebuild()
    if not found:
        return f"{options.folder} holds nothing that tables in it lead to", 0
    width = max(len(one.product) for one in found)
    lines = [f"{one.product:{width}}  {one.status:10}  {one.detail}".rstrip() for one in found]
    return "\n".join(lines), int(any(one.status == "differs" for one in found))
