"""The readiness table: every item of the paper with its files, and what it still lacks (P1-11.1).

An item is a list of parts; a part is a file that a rule makes, or work that no rule does yet. What
is said of a part (measured or modelled, weights, scale) is read from the file, never from here.
"""

from dataclasses import dataclass
from pathlib import Path

from ember.records.tables import read_rows, table_provenance
from ember.studies.paper.readiness.tables import READINESS
from ember.studies.steps import makes


@dataclass(frozen=True)
class Part:
    """A piece of an item: the table it rests on and the product shown, or None if not yet made.

    What is drawn from the code itself has a product and no table.
    """

    what: str
    table: str | None = None
    product: str | None = None


@dataclass(frozen=True)
class Item:
    """A figure, table or section of the paper."""

    name: str
    spec: str
    parts: tuple[Part, ...]


ITEMS = (
    Item(
        "Fig 2",
        "P1-1.1",
        (
            Part("one device", "p1_prefill_share.parquet", "p1_fig2.png"),
            Part("two stages", "{scale}/p1/profile/stages.parquet", "p1_fig2.png"),
            Part("pipeline splits", "p1_pipeline.parquet", "p1_pipeline_splits.png"),
            Part("pipeline timing", "p1_pipeline.parquet", "p1_gantt.png"),
        ),
    ),
    Item(
        "Fig 3",
        "P1-6",
        (
            Part("modelled cost", "{scale}/p1/policies/cost.parquet", "p1_fig3.png"),
            Part("the loop really run, and the model's error (P1-6.2)"),
        ),
    ),
    Item("Fig 4", "P1-7", (Part("update-locality sweep with training"),)),
    Item("Fig 5", "P1-8", (Part("UpdatableKV sweep and gate"),)),
    Item(
        "Table 1",
        "P1-9",
        (
            Part("modelled cost", "p1_policies.parquet", "p1_policies.tex"),
            Part("final quality after training, cache memory"),
        ),
    ),
    Item("Table 2", "P1-10.4", (Part("unified backend against two stacks"),)),
    Item("Sec 4.4", "P1-2", (Part("prefix", "p1_prefix_savings.parquet", "p1_sec44.png"),)),
    Item("Sec 5.6", "P1-10.4", (Part("weight synchronisation against in-place update"),)),
    Item(
        "Talk: prefill-share curve",
        "P1-11.3",
        (Part("curve", "p1_prefill_share.parquet", "p1_fig2.png"),),
    ),
    Item(
        "Talk: prefix-cache comparison",
        "P1-11.3",
        (Part("comparison", "p1_prefix_savings.parquet", "p1_sec44.png"),),
    ),
    Item("Talk: architecture diagram", "P1-11.3", (Part("diagram", None, "architecture.png"),)),
    Item("Paper and talk sources", "P1-11.2", (Part("templates with resolved numbers"),)),
)


@makes(READINESS)
def assess(results: Path = Path("results"), *, scale: str, items=ITEMS) -> list[dict]:
    """Rows of `READINESS` for the files below `results` made at `scale`.

    A table that was made at another scale counts as missing and the row says so.
    """
    return [_row(item, Path(results), scale) for item in items]


def _row(item: Item, results: Path, scale: str) -> dict:
    there, missing, basis = [], [], []
    for part in item.parts:
        lack = _lack(part, results, scale)
        if lack:
            missing.append(lack)
            continue
        if part.table is None:
            there.append(f"results/{part.product}")
            basis.append(f"{part.what}: drawn from the code")
            continue
        table = part.table.format(scale=scale)
        there.append(f"results/{part.product} from results/{table}")
        basis.append(f"{part.what}: {_basis(results / table)}")
    status = "missing" if not there else "partial" if missing else "ready"
    return {
        "item": item.name,
        "spec": item.spec,
        "status": status,
        "source": "; ".join(there) or None,
        "basis": "; ".join(basis) or None,
        "missing": "; ".join(missing) or None,
        "scale": scale,
    }


def _lack(part: Part, results: Path, scale: str) -> str | None:
    if part.product is None:
        return part.what
    if part.table is None:
        made = (results / part.product).exists()
        return None if made else f"{part.what}: results/{part.product} is not made"
    table = results / part.table.format(scale=scale)
    for path in (table, results / part.product):
        if not path.exists():
            return f"{part.what}: results/{path.relative_to(results)} is not made"
    made = (table_provenance(table).get("config") or {}).get("scale")
    if made != scale:
        return f"{part.what}: made at scale {made}, not {scale}"
    rows = read_rows(table)
    if rows and all(row.get("status") == "skipped" for row in rows):
        return f"{part.what}: skipped ({'; '.join(sorted({row['reason'] for row in rows}))})"
    return None


def _basis(table: Path) -> str:
    rows = read_rows(table)
    words = sorted({row["evidence"] for row in rows})
    words += [
        f"{kind} weights" for kind in sorted({row["weights"] for row in rows if "weights" in row})
    ]
    return ", ".join(words)
