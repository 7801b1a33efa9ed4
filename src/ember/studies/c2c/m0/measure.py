"""Answers of the channel, its baselines and its controls; times of its stages."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ember.c2c.evaluate import Item, evaluate
from ember.c2c.pair import Pair, Reader, load_pair, load_reader
from ember.c2c.world import World, world_of
from ember.measure.clock import PhaseClock, timed
from ember.measure.device import resolve
from ember.studies.c2c.items import read_items
from ember.studies.c2c.m0.tables import C2C_ANSWERS, C2C_STAGES
from ember.studies.measured import in_turns, measured_on
from ember.studies.rows import better_of
from ember.studies.steps import makes

log = logging.getLogger(__name__)

STAGES = ("sharer_prefill", "transmit", "receiver_prefill", "fuse", "answer")


@makes(C2C_ANSWERS)
def answer_baselines(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    self_fuser: str | Path,
    tuned: str | Path,
    questions,
    world: Mapping,
    world_seed: int,
    batch_size: int,
    runtime: Mapping,
) -> list[dict]:
    """Rows of C2C_ANSWERS on the test split of one seed."""
    device, dtype = resolve(runtime["device"]), runtime["dtype"]
    number = getattr(torch, dtype)
    pair = load_pair(sharer, receiver, fuser, device, number)
    items, made = read_items(questions, "test"), world_of(world)

    def asked(pair: Pair, items: Sequence[Item] = items, **options) -> list[dict]:
        return evaluate(pair, items, batch_size=batch_size, **options)

    alone = asked(pair, source="none")
    theirs = in_choices(asked(_alone(pair.sharer), sharers_items(items), source="none"), items)
    found = {
        "receiver": alone,
        "sharer": theirs,
        "routing": better_of(alone, theirs, "confidence"),
        "oracle": better_of(alone, theirs, "correct"),
        "tuned": asked(_alone(load_reader(tuned, device, number)), source="none"),
    }
    told, sizes = told_items(items, theirs, made)
    found["text"] = with_bytes(asked(pair, told, source="none"), sizes)
    told, sizes = forwarded_items(items, made, world_seed)
    found["text_passage"] = with_bytes(asked(pair, told, source="none"), sizes)
    for name, source in (("c2c", "own"), ("shuffled", "shuffled"), ("zero", "zero")):
        found[name] = asked(pair, source=source)
        log.info("%s answered", name)
    selfish = load_pair(receiver, receiver, self_fuser, device, number)
    own = [replace(item, sharer=item.sections[0]) for item in items]
    found["self"] = asked(selfish, own)
    about = measured_on(receiver, device, dtype) | {"model": "c2c pair"}
    return [
        {"seed": world_seed, "method": method, **row, **about}
        for method, rows in found.items()
        for row in rows
    ]


def _alone(reader: Reader) -> Pair:
    """A model that answers by itself."""
    return Pair(None, reader, None)


def sharers_items(items: Sequence[Item]) -> list[Item]:
    """The questions as the sharer is asked them, in its own tokens."""
    return [
        replace(
            item,
            sections=(item.sharer, item.question),
            fused=(False, False),
            index=(-1,) * len(item.sharer),
            instruction=(False,) * len(item.sharer),
            choices=item.theirs,
            right=item.theirs[item.choices.index(item.right)],
        )
        for item in items
    ]


def in_choices(rows: Sequence[dict], items: Sequence[Item]) -> list[dict]:
    """The sharer's answers in the receiver's tokens."""
    return [
        row | {"answer": item.choices[item.theirs.index(row["answer"])], "right": item.right}
        for row, item in zip(rows, items, strict=True)
    ]


def told_items(
    items: Sequence[Item], answers: Sequence[dict], world: World
) -> tuple[list[Item], list[int]]:
    """Text to text: the sharer is asked and writes the record it would answer with, `e r v`, which
    stands at the end of the receiver's passage; and the message's length in UTF-8."""
    told, sizes = [], []
    for item, row in zip(items, answers, strict=True):
        record = (*item.sections[-1][1:3], row["answer"])
        told.append(_with_text(item, record))
        sizes.append(_text_bytes(record, world))
    return told, sizes


def forwarded_items(items: Sequence[Item], world: World, seed: int) -> tuple[list[Item], list[int]]:
    """The sharer's whole text without masks, forwarded as it stands: its records go to the end of
    the receiver's passage. It is not written by the sharer and does not depend on the question.

    Texts of several lengths cannot stand in one batch of models with a smear: shorter ones are
    filled up with fillers, which are not counted."""
    from ember.c2c.world import MASK, renamed

    back = {int(theirs): ours for ours, theirs in enumerate(renamed(world, seed))}
    texts = [[back[token] for token in item.sharer] for item in items]
    records = [[t for t in text if t >= world.first_entity and t != MASK] for text in texts]
    longest = 3 * world.records
    told = [
        _with_text(item, (*([4] * (longest - len(text))), *text))
        for item, text in zip(items, records, strict=True)
    ]
    return told, [_text_bytes(text, world) for text in records]


def _text_bytes(tokens: Sequence[int], world: World) -> int:
    return len(" ".join(map(world.text, tokens)).encode())


def _with_text(item: Item, tokens: Sequence[int]) -> Item:
    passage = (*item.sections[0], *tokens)
    nothing = len(passage)
    return replace(
        item,
        sections=(passage, item.sections[-1]),
        fused=(False, False),
        index=(-1,) * nothing,
        instruction=(False,) * nothing,
    )


def with_bytes(rows: Sequence[dict], sizes: Sequence[int]) -> list[dict]:
    """Rows with what was sent for each."""
    return [row | {"bytes": size} for row, size in zip(rows, sizes, strict=True)]


@makes(C2C_STAGES)
def time_stages(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    items: int,
    batch_sizes: Sequence[int],
    compile: Sequence[bool],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of C2C_STAGES: batch sizes, compiled or not, take turns. Each item is read anew, but for
    one more row of the largest batch, in which items share their text as in all other studies."""
    device, number = resolve(device), getattr(torch, dtype)
    some = read_items(questions, "test", items)
    about = measured_on(receiver, device, dtype) | {"model": "c2c pair"}
    pairs = {}
    for compiled in compile:
        pairs[compiled] = load_pair(sharer, receiver, fuser, device, number)
        if compiled:
            for layer in pairs[compiled].fuser:
                layer.key.compile(dynamic=True)
                layer.value.compile(dynamic=True)
    points = [(size, compiled, False) for compiled in compile for size in batch_sizes]
    points.append((max(batch_sizes), compile[0], True))
    reference = [row["answer"] for row in evaluate(pairs[compile[0]], some, batch_size=1)]

    def named(point: tuple) -> str:
        return "batch {}, compiled {}, shared {}".format(*point)

    turns = in_turns(points, warmup, repeats, seed, named, log)
    rows = []
    for turn, (size, compiled, shared) in turns:
        clock = PhaseClock(device)
        options = {"batch_size": size, "share_prefix": shared, "clock": clock}
        ms, found = timed(
            lambda options=options, pair=pairs[compiled]: evaluate(pair, some, **options), device
        )
        if turn >= 0:
            stages = clock.times_ms()
            rows.append(
                {
                    "batch_size": size,
                    "compiled": compiled,
                    "shared": shared,
                    "repeat": turn,
                    "items_timed": len(some),
                    **{f"{stage}_ms": stages.get(stage, 0.0) / len(some) for stage in STAGES},
                    "total_ms": ms / len(some),
                    "same_answers": [row["answer"] for row in found] == reference,
                    **about,
                }
            )
    return sorted(rows, key=lambda row: [row[name] for name in C2C_STAGES.key])
