"""What real pairs need that is no model: a published fuser, and questions."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ember.studies.c2c.real.tables import C2C_QUESTIONS
from ember.studies.steps import makes


@makes()
def fetch_fuser(settings: Mapping, fuser: Path) -> None:
    """Links the files of a published fuser (PublishedFuser) and of its training to `fuser`, under
    `final` and beside it. Raises `BadFuser`."""
    from ember.c2c.published import REMEDY, TRAINING, BadFuser, fetch_published

    found = fetch_published(settings["source"], settings["folder"], settings["revision"])
    if not found.is_dir():
        raise BadFuser(f"there is no folder {found}.\n{REMEDY}")
    final = Path(fuser) / "final"
    final.mkdir(parents=True, exist_ok=True)
    for file in sorted(found.iterdir()):
        if file.is_file():
            os.symlink(file.resolve(), final / file.name)
    if (training := found.parent / TRAINING).is_file():
        os.symlink(training.resolve(), final.parent / TRAINING)


@makes(C2C_QUESTIONS)
def collect_questions(settings: Mapping) -> list[dict]:
    """Rows of C2C_QUESTIONS of a benchmark (Benchmark). Raises `BadData`."""
    from ember.c2c.data import load_questions

    found = load_questions(
        settings["source"],
        settings["name"],
        settings["split"],
        settings["revision"],
        expected=settings["items"],
        limit=settings["limit"],
    )
    return [
        {"item": q.name, "question": q.text, "choices": json.dumps(q.choices), "right": q.key}
        for q in found
    ]
