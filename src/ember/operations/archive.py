"""`reports/<experiment>_<date>`: what an experiment's products were made of, kept (P1-0.4)."""

import json
import shutil
from datetime import date
from pathlib import Path

from ember.records.atomic import atomic_dir
from ember.records.errors import EmberError
from ember.records.remedy import remake
from ember.records.trace import format_trace, mismatches, nodes, trace

PRODUCT_ENDINGS = (".png", ".pdf", ".parquet", ".csv", ".md", ".tex")


class NothingToArchive(EmberError):
    """No product of that name, or products whose sources have changed since."""


def archive(experiment: str, results: Path, reports: Path, *, day: date | None = None) -> Path:
    """Copy the products `results/<experiment>*`, the tables they rest on and their trace.

    Tables keep their place below `results`; `MANIFEST.json` lists every file with its hash.
    Returns the archive's folder. Raises `NothingToArchive` where no product has that name, where
    one no longer matches its sources, or where the archive exists.
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
    target = reports / f"{experiment}_{(day or date.today()).isoformat()}"
    if target.exists():
        raise NothingToArchive(f"{target} exists.\nMove it away to archive again.")
    trees = {product: trace(product) for product in products}
    _refuse_changed(trees)
    with atomic_dir(target) as folder:
        files = _copy(trees, results, Path(folder))
        (Path(folder) / "MANIFEST.json").write_text(json.dumps(files, indent=2) + "\n")
        text = "\n\n".join(format_trace(tree) for tree in trees.values())
        (Path(folder) / "TRACE.txt").write_text(text + "\n")
    return target


def _refuse_changed(trees) -> None:
    changed = sorted({node.path for tree in trees.values() for node in mismatches(tree)})
    if changed:
        raise NothingToArchive(
            f"changed since the products were made: {', '.join(changed)}.\n"
            "Run the workflow again, then archive."
        )


def _copy(trees, results: Path, folder: Path) -> dict[str, str]:
    from ember.records.provenance import digest

    wanted = set(trees)
    for product, tree in trees.items():
        caption = product.with_suffix(".caption.md")
        wanted |= {caption} if caption.exists() else set()
        for node in nodes(tree):
            path = results.parent / node.path
            if path.suffix == ".parquet" and path.exists():
                wanted.add(path)
    files = {}
    for path in sorted(wanted):
        copy = folder / path.resolve().relative_to(results.resolve())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        files[str(copy.relative_to(folder))] = digest(copy)[0]
    return files
