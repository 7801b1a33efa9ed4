"""The questions that all studies ask, as a table."""

from collections.abc import Mapping

from ember.c2c.evaluate import Item
from ember.c2c.world import STRATA, World, ask, passages, pick, renamed, split_generator, world_of
from ember.studies.c2c.items import item_row
from ember.studies.c2c.tables import C2C_ITEMS
from ember.studies.steps import makes


@makes(C2C_ITEMS)
def make_questions(*, world: Mapping, world_seed: int, passages: int, questions: int) -> list[dict]:
    """Rows of C2C_ITEMS: a development and a test split, disjoint by seed from each other and from
    all training."""
    made = world_of(world)
    return [
        item_row(item, split)
        for split in ("development", "test")
        for item in world_items(made, world_seed, split, passages, questions)
    ]


def world_items(world: World, seed: int, split: str, count: int, questions: int) -> list[Item]:
    """Questions about `count` passages, `questions` each, every record as likely as another."""
    rng = split_generator(seed, split)
    made = passages(world, count, rng)
    picks = pick(made.known.any(-1) | True, questions, rng)
    asked, strata = ask(made.records, picks), made.strata()
    names, choices = renamed(world, seed), tuple(world.choices())
    sharer = names[made.sharer]
    size = world.passage_tokens
    return [
        Item(
            id=number * questions + place,
            group=number,
            stratum=STRATA[strata[number, picks[number, place]]],
            sharer=tuple(sharer[number].tolist()),
            sections=(tuple(made.receiver[number].tolist()), tuple(one[:4].tolist())),
            fused=(True, False),
            index=tuple(range(size)),
            instruction=(True,) * size,
            choices=choices,
            right=int(one[4]),
            question=tuple(names[one[:4]].tolist()),
            theirs=tuple(names[list(choices)].tolist()),
        )
        for number in range(count)
        for place, one in enumerate(asked[number])
    ]
