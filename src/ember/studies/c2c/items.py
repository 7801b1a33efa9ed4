"""Items as rows of a table, and back."""

import itertools

from ember.c2c.evaluate import BadEvaluation, Item
from ember.studies.c2c.tables import C2C_ITEMS
from ember.studies.rows import records


def item_row(item: Item, split: str) -> dict:
    """A row of C2C_ITEMS."""
    return {
        "split": split,
        "item": item.id,
        "group": item.group,
        "stratum": item.stratum,
        "sharer": list(item.sharer),
        "receiver": list(itertools.chain(*item.sections)),
        "lengths": [len(section) for section in item.sections],
        "fused": [int(x) for x in item.fused],
        "index": list(item.index),
        "instruction": [int(x) for x in item.instruction],
        "choices": list(item.choices),
        "right": item.right,
        "question": list(item.question),
        "theirs": list(item.theirs),
    }


def read_items(table, split: str, limit: int | None = None) -> list[Item]:
    """The items of a split of a table C2C_ITEMS, in order; at most `limit`."""
    found = []
    for row in records(table, C2C_ITEMS):
        if row["split"] != split or (limit is not None and len(found) == limit):
            continue
        tokens = iter(row["receiver"])
        sections = tuple(tuple(itertools.islice(tokens, n)) for n in row["lengths"])
        found.append(
            Item(
                row["item"],
                row["group"],
                row["stratum"],
                tuple(row["sharer"]),
                sections,
                tuple(map(bool, row["fused"])),
                tuple(row["index"]),
                tuple(map(bool, row["instruction"])),
                tuple(row["choices"]),
                row["right"],
                tuple(row["question"]),
                tuple(row["theirs"]),
            )
        )
    if not found:
        raise BadEvaluation(f"there are no items of the split {split!r}.\nMake the items again.")
    return found
