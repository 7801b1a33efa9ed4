"""Answers of real pairs by every method, and the times of their stages."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ember.c2c.data import Question
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
    for method in METHODS:
        if method in FUSED and fuser is None:
            continue
        options = {"budget": budget, "template": template}
        # What a device compiles or finds out at a first call is no time of a question.
        answers(*loaded, method, asked[: max(2, budget.batch_size)], **options, forced=False)
        clock = PhaseClock(device)
        rows = answers(*loaded, method, asked, **options, clock=clock)
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
