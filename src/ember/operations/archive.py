"""`reports/<experiment>_<date>`: what an experiment's products were made of, kept (P1-0.4).

A golden archive (`reports/golden/…`, C-R) holds validated runs only, with their jobs' records and
logs; `verify` compares any archive with the hashes that it was written with.
"""

import json
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from ember.measure.overhead import record_file
from ember.records.atomic import atomic_dir
from ember.records.errors import EmberError
from ember.records.foreign import inside, read_object
from ember.records.provenance import digest
from ember.records.remedy import remake
from ember.records.trace import format_trace, mismatches, nodes, trace

PRODUCT_ENDINGS = (".png", ".pdf", ".parquet", ".csv", ".md", ".tex")


class NothingToArchive(EmberError):
    """No product of that name, or products whose sources have changed since."""


class NotValid(EmberError):
    """Runs that no golden archive may hold."""


class Changed(EmberError):
    """An archive that is not what was written, or none at all."""


def archive(
    experiment: str, results: Path, reports: Path, *, day: date | None = None, golden: bool = False
) -> Path:
    """Copy the products `results/<experiment>*`, the tables they rest on and their trace.

    Tables keep their place below `results`; `MANIFEST.json` lists every file with its hash.
    `golden`: below `reports/golden`, with the records and logs of the jobs, and only if all code
    was committed, no row failed and the scale is not smoke. Returns the archive's folder. Raises
    `NothingToArchive` where no product has that name, where one no longer matches its sources, or
    where the archive exists, and `NotValid`.
    """
    results, reports = Path(results), Path(reports)
    products = sorted(
        path
        for path in results.glob(f"{experiment}*")
        if path.suffix in PRODUCT_ENDINGS and not path.name.endswith(".caption.md")
    )
    if not products:
        raise NothingToArchive(
            f"no product {experiment}* in {results}.\nMake it first: "
            f"{remake(results / f'{experiment}.png')}"
        )
    folder = reports / "golden" if golden else reports
    target = folder / f"{experiment}_{(day or date.today()).isoformat()}"
    if target.exists():
        raise NothingToArchive(f"{target} exists.\nMove it away to archive again.")
    trees = {product: trace(product) for product in products}
    _refuse_changed(trees)
    jobs = _validated(trees, results.parent) if golden else {}
    with atomic_dir(target) as folder:
        wanted = _tables(trees, results) | _job_files(jobs, results)
        files = {place: _copied(path, Path(folder, place)) for place, path in wanted.items()}
        (Path(folder) / "MANIFEST.json").write_text(json.dumps(files, indent=2) + "\n")
        text = "\n\n".join(format_trace(tree) for tree in trees.values())
        (Path(folder) / "TRACE.txt").write_text(text + "\n")
    return target


def verify(folder: Path) -> int:
    """How many files an archive holds, each as it was archived. Raises `Changed`."""
    folder = Path(folder)
    remedy = "Take the archive from where it was copied from, or archive the runs again."
    listed = read_object(folder / "MANIFEST.json", Changed, remedy).values_of(str)
    wrong = []
    for name, sha256 in listed.items():
        path = inside(folder, name)
        if path is None or not path.is_file() or digest(path)[0] != sha256:
            wrong.append(name)
    own = {"MANIFEST.json", "TRACE.txt"}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wrong += sorted(there - own - listed.keys())
    if wrong or not listed:
        what = ", ".join(wrong[:5]) or "nothing is listed"
        raise Changed(f"{folder} is not what was archived: {what}\n{remedy}")
    return len(listed)


def _validated(trees, root: Path) -> dict[str, str]:
    """Scale by job of everything in the trees. Raises `NotValid`."""
    from ember.records.tables import read_rows

    jobs, wrong = {}, []
    for node in (node for tree in trees.values() for node in nodes(tree)):
        made = node.provenance or {}
        scale, path = (made.get("config") or {}).get("scale"), root / node.path
        if node.problem and node.path.startswith("results/"):
            wrong.append(f"{node.path}: {node.problem}")
        elif made and (made.get("source") or {}).get("dirty") is not False:
            wrong.append(f"{node.path} was made by code that is not committed")
        elif scale == "smoke":
            wrong.append(f"{node.path} is of scale smoke, which is a test of the workflow")
        elif path.suffix == ".parquet" and any(
            row.get("status") == "failed" for row in read_rows(path)
        ):
            wrong.append(f"{node.path} has rows that failed")
        if name := (made.get("job") or {}).get("name"):
            jobs[name] = scale
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise NotValid(
            f"not validated: {'; '.join(dict.fromkeys(wrong[:3]))}{more}.\n"
            "Commit, run the workflow again, then archive; `ember clean` removes failed runs."
        )
    return jobs


def _job_files(jobs: Mapping[str, str], results: Path) -> dict[str, Path]:
    """Records and logs of jobs, by their place in the archive."""
    files = {}
    for name, scale in jobs.items():
        record = record_file(scale, name, results.parent)
        log = results.parent / "logs" / str(scale) / f"{name}.log"
        files |= {f"records/{record.name}": record, f"logs/{log.name}": log}
    return {place: path for place, path in files.items() if path.is_file()}


def _refuse_changed(trees) -> None:
    changed = sorted({node.path for tree in trees.values() for node in mismatches(tree)})
    if changed:
        raise NothingToArchive(
            f"changed since the products were made: {', '.join(changed)}.\n"
            "Run the workflow again, then archive."
        )


def _tables(trees, results: Path) -> dict[str, Path]:
    """Products, captions and the tables they rest on, by their place in the archive."""
    wanted = set(trees)
    for product, tree in trees.items():
        caption = product.with_suffix(".caption.md")
        wanted |= {caption} if caption.exists() else set()
        paths = (results.parent / node.path for node in nodes(tree))
        wanted |= {path for path in paths if path.suffix == ".parquet" and path.exists()}
    top = results.resolve()
    return {str(path.resolve().relative_to(top)): path for path in sorted(wanted)}


def _copied(path: Path, copy: Path) -> str:
    """The hash of a file's copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, copy)
    return digest(copy)[0]
