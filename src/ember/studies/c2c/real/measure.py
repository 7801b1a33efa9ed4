"""Answers of real pairs by every method, and the times of their stages."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from ember.c2c.channel import channel_of, quantised_base
from ember.c2c.data import Question
from ember.c2c.points import distinct, expand
from ember.c2c.prompt import TEMPLATE
from ember.c2c.real import FUSED, METHODS, Budget, answers, load_real
from ember.measure.clock import PhaseClock
from ember.measure.device import resolve
from ember.studies.c2c.real.tables import C2C_QUESTIONS, C2C_REAL_ANSWERS, C2C_REAL_STAGES
from ember.studies.measured import measured_on
from ember.studies.rows import records
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(C2C_REAL_ANSWERS, C2C_REAL_STAGES)
def answer_questions(
    *,
    pair: str,
    benchmark: str,
    settings: Mapping,
    protocol: Mapping,
    sharer: str | Path,
    receiver: str | Path,
    questions,
    runtime: Mapping,
    fuser: str | Path | None = None,
) -> tuple[list[dict], list[dict]]:
    """Rows of both tables. `settings`: the pair (RealPair); `protocol`: what its methods share."""
    device, dtype = resolve(runtime["device"]), runtime["dtype"]
    loaded = load_real(
        sharer,
        receiver,
        None if fuser is None else Path(fuser) / "final",
        alignment=settings["alignment"],
        fuse_template=settings["fuse_template"],
        device=device,
        dtype=getattr(torch, dtype),
    )
    budget = Budget(*(protocol[name] for name in ("new_tokens", "message_tokens", "batch_size")))
    template = protocol["template"] or TEMPLATE
    asked = [
        Question(row["item"], row["question"], tuple(json.loads(row["choices"])), row["right"])
        for row in records(questions, C2C_QUESTIONS)
    ]
    chats, said = loaded[1], {"pair": pair, "benchmark": benchmark}
    about = measured_on(receiver, device, dtype) | {"model": pair}
    aligned = {"alignment": chats.alignment, "fuse_template": chats.fuse_template}
    found, stages = [], []
    for method, point in subjects(protocol["grids"], fuser is not None):
        options = {"budget": budget, "template": template}
        kind, quantised = method, nullcontext()
        if point:
            kind, quantised = "c2c", quantised_base(loaded[0].fuser, point)
            options |= {"transmit": channel_of(point, loaded[0].fuser).transmit}
            options |= {"sparse": point["sparse_fuse"]}
        with quantised:
            # What a device compiles or finds out at a first call is no time of a question.
            answers(*loaded, kind, asked[: max(2, budget.batch_size)], **options, forced=False)
            clock = PhaseClock(device)
            rows = answers(*loaded, kind, asked, **options, clock=clock)
        kept = set(C2C_REAL_ANSWERS.names)
        found += [
            {name: value for name, value in row.items() if name in kept}
            | {**said, "method": method, **aligned, **about}
            for row in rows
        ]
        sizes = {"items": len(asked), "batch_size": budget.batch_size}
        stages += [
            {**said, "method": method, "stage": stage, "ms": ms / len(asked), **sizes, **about}
            for stage, ms in clock.times_ms().items()
        ]
        log.info("%s on %s: %s has answered %d", pair, benchmark, method, len(asked))
    return found, stages


def subjects(grids: Sequence[Mapping], fused: bool) -> list[tuple[str, dict]]:
    """Methods, and the points of the channel beside FP16 by their ids."""
    if not fused:
        return [(method, {}) for method in METHODS if method not in FUSED]
    points = [
        one for grid in grids for one in expand(grid["kv_quant_config"], grid["kv_transfer_config"])
    ]
    _, *others = distinct(points)  # the first is FP16, the method c2c
    return [*((method, {}) for method in METHODS), *((one["point"], one) for one in others)]
