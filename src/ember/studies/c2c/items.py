"""Items as rows of a table, and back."""

import itertools

from ember.c2c.evaluate import BadEvaluation, Item
from ember.studies.c2c.tables import C2C_ITEMS
from ember.studies.rows import records

TOKENS = ("sharer", "index", "choices", "question", "theirs")
FLAGS = ("fused", "instruction")  # 0 or 1 in the table


def item_row(item: Item, split: str) -> dict:
    """A row of C2C_ITEMS."""
    return {
        "split": split,
        "item": item.id,
        "receiver": list(itertools.chain(*item.sections)),
        "lengths": [len(section) for section in item.sections],
        **{name: getattr(item, name) for name in ("group", "stratum", "right")},
        **{name: [int(x) for x in getattr(item, name)] for name in (*TOKENS, *FLAGS)},
    }


def read_items(table, split: str, limit: int | None = None) -> list[Item]:
    """The items of a split of a table C2C_ITEMS, in order; at most `limit`."""
    found = []
    for row in records(table, C2C_ITEMS):
        if row["split"] != split or (limit is not None and len(found) == limit):
            continue
        tokens = iter(row["receiver"])
        sections = tuple(tuple(itertools.islice(tokens, n)) for n in row["lengths"])
        lists = {name: tuple(row[name]) for name in TOKENS}
        lists |= {name: tuple(map(bool, row[name])) for name in FLAGS}
        same = {name: row[name] for name in ("group", "stratum", "right")}
        found.append(Item(id=row["item"], sections=sections, **lists, **same))
    if not found:
        raise BadEvaluation(f"there are no items of the split {split!r}.\nMake the items again.")
    return found
