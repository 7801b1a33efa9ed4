"""Multiple-choice questions: OpenBookQA and ARC-Challenge, from the hub or local files.

Contract. `load_questions` reads a split with `datasets.load_dataset` and gives checked questions in
the file's order. Both data sets come in two forms, as the hub has them (`question_stem` or
`question`; `choices` of texts and labels) and as first published (`question` with `stem` and
`choices`); either is read. Questions whose key is no letter from A to D are left out, as the
published evaluation does: 22 of the 1,172 of ARC-Challenge, which number their choices (C-0.4).
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ember.records.errors import EmberError
from ember.records.foreign import cause_of, shown

log = logging.getLogger(__name__)

LETTERS = "ABCDE"  # of choices; a key is one of the first four
KEYS = LETTERS[:4]
FORMS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
REMEDY = "Give OpenBookQA or ARC in its Parquet or JSONL form, whole, or its hub id."


class BadData(EmberError):
    """A data set that cannot be read, or whose rows are no questions; the message says which."""


@dataclass(frozen=True)
class Question:
    """A question with its choices; `key` is the letter of the right one."""

    name: str
    text: str
    choices: tuple[str, ...]
    key: str


def load_questions(
    source: str,
    name: str | None = None,
    split: str = "test",
    revision: str | None = None,
    *,
    expected: int | None = None,
    limit: int | None = None,
) -> list[Question]:
    """Questions of a data set.

    source: a hub id, or a Parquet or JSONL file. `name` and `split` are the hub's, `revision` too.
    `expected`: how many there are to be, so that a file which lost its end is not taken for whole.
    `limit`: only the first ones. Raises `BadData`.
    """
    rows = _read(source, name, split, revision)
    named = [(f"row {place} of {source}", row) for place, row in enumerate(rows, 1)]
    kept, left_out = [], Counter()
    for where, row in named:
        key = str(row.get("answerKey")).strip() if isinstance(row, Mapping) else None
        if key not in KEYS:
            left_out[key] += 1
            if key in (None, "None", ""):
                raise BadData(f"{where} has no answerKey.\n{REMEDY}")
            continue
        kept.append(_question(row, key, where))
    if left_out:
        keys = ", ".join(f"{key} ({left_out[key]})" for key in sorted(left_out))
        counts = (left_out.total(), len(named))
        log.info("%s: %d of %d questions left out, by their keys: %s", source, *counts, keys)
    if not kept:
        raise BadData(f"{source} has no question with a key from A to D.\n{REMEDY}")
    if repeated := [name for name, n in Counter(q.name for q in kept).items() if n > 1]:
        raise BadData(f"{source} has the id {shown(repeated[0])} twice.\n{REMEDY}")
    if expected is not None and len(kept) != expected:
        raise BadData(
            f"{source} has {len(kept)} questions with keys from A to D, and {expected} are "
            "expected.\nGive the whole split, or set the number that yours has (items)."
        )
    return kept[:limit]


def _read(source: str, name: str | None, split: str, revision: str | None) -> list:
    try:
        import datasets
    except ImportError:
        raise BadData(
            "questions are read with the package `datasets`, which is not installed.\n"
            "Install it (pip install 'ember[peers]')."
        ) from None
    path = Path(source).expanduser()
    try:
        if path.is_file():
            if path.suffix not in FORMS:
                raise BadData(f"{source} is neither .parquet nor .jsonl.\n{REMEDY}")
            with TemporaryDirectory() as cache:  # or a copy of every file ever read would stay
                rows = datasets.load_dataset(
                    FORMS[path.suffix], data_files=str(path), split="train", cache_dir=cache
                )
                return list(rows)
        return list(datasets.load_dataset(source, name, split=split, revision=revision))
    except BadData:
        raise
    # datasets raises its own, pyarrow's, fsspec's, httpx's and huggingface_hub's errors here.
    except Exception as error:
        cause = error.__cause__ or error  # its own say only that an error occurred
        raise BadData(
            f"the data set {source} cannot be read: {type(cause).__name__}: {cause_of(cause)}.\n"
            f"{REMEDY} Without a network a local file is needed."
        ) from None


def _question(row: Mapping, key: str, where: str) -> Question:
    stem, choices = row.get("question_stem", row.get("question")), row.get("choices")
    if isinstance(stem, Mapping):  # as first published
        stem, choices = stem.get("stem"), stem.get("choices", choices)
    if isinstance(choices, Mapping):
        texts, labels = choices.get("text"), choices.get("label")
    else:
        listed = [one for one in choices or () if isinstance(one, Mapping)]
        texts = [one.get("text") for one in listed]
        labels = [one.get("label") for one in listed]
    texts, labels = list(texts or ()), list(labels or ())
    if not isinstance(stem, str) or not stem.strip():
        raise BadData(f"{where} has no question.\n{REMEDY}")
    if not 2 <= len(texts) <= len(LETTERS) or not all(isinstance(text, str) for text in texts):
        raise BadData(f"{where} has {shown(texts)} for choices.\n{REMEDY}")
    if labels != list(LETTERS[: len(texts)]):
        raise BadData(f"{where} labels its {len(texts)} choices {shown(labels)}.\n{REMEDY}")
    if key not in labels:
        raise BadData(f"{where} has the key {key} and {len(texts)} choices.\n{REMEDY}")
    name = row.get("id")
    if not isinstance(name, str) or not name:
        raise BadData(f"{where} has no id.\n{REMEDY}")
    return Question(name, stem.strip(), tuple(text.strip() for text in texts), key)
