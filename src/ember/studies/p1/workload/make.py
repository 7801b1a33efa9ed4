"""The shared-prefix workload (P1-2.2): prompts of controlled prefix and suffix lengths.

`make_workload` lays out one stream of tokens that every document shares (the long instruction or
schema) and one stream for each document; `Workload.prompt` cuts a prompt of any length from them.
Real text where the model was trained on text, seeded uniform ids where its weights are random.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ember.records.errors import EmberError
from ember.records.foreign import read_object
from ember.studies.p1.workload.tables import WORKLOAD
from ember.studies.steps import makes

log = logging.getLogger(__name__)

SHARED = -1  # document number of the stream that all documents share


class WorkloadTooSmall(EmberError):
    """The workload cannot give the prompts asked for, or its corpus not the workload."""


@dataclass(frozen=True)
class Workload:
    """Token streams; `documents[i]` is the stream of document i. Arrays of int64, one axis."""

    shared: np.ndarray
    documents: tuple[np.ndarray, ...]

    def prompt(self, document: int, tokens: int, prefix: int) -> list[int]:
        """A prompt of `tokens` ids whose first `prefix` are shared with every other document.

        The first token after the prefix always differs from the shared stream's, so that exactly
        `prefix` tokens are shared with it. Raises WorkloadTooSmall, ValueError.
        """
        if not 0 <= prefix < tokens:
            raise ValueError(f"prefix {prefix} must be in 0..{tokens - 1}")
        if not 0 <= document < len(self.documents):
            raise WorkloadTooSmall(
                f"the workload has {len(self.documents)} documents, document {document} asked for\n"
                "make it again with more documents"
            )
        own, suffix = self.documents[document], tokens - prefix
        start = 0
        if prefix < len(self.shared):
            differs = own != self.shared[prefix]
            start = int(differs.argmax()) if differs.any() else len(own)
        if prefix > len(self.shared) or start + suffix > len(own):
            raise WorkloadTooSmall(
                f"a prompt of {tokens} tokens with prefix {prefix} needs longer streams: the "
                f"shared one has {len(self.shared)}, that of document {document} {len(own)}\n"
                "make the workload again with more tokens"
            )
        return [*self.shared[:prefix].tolist(), *own[start : start + suffix].tolist()]


@makes(WORKLOAD)
def make_workload(
    *, model: str | Path, documents: int, tokens: int, seed: int, corpus: str | Path | None = None
) -> list[dict]:
    """Rows of WORKLOAD for `documents` documents and prompts of up to `tokens` tokens.

    With `corpus` (a corpus table) its texts, held-out ones first, are tokenised by the model's
    tokenizer; without, ids are drawn uniformly from the model's vocabulary.
    """
    length = tokens + 8  # `prompt` may skip a few tokens to leave the shared stream at once
    if corpus is None:
        config = read_object(Path(model) / "config.json", EmberError, "Make the model again.")
        vocabulary = config.get("vocab_size", int, low=1, high=1 << 28)
        return _rows(*random_streams(vocabulary, documents, length, seed))
    return _rows(*text_streams(_texts(corpus, seed), _encoder(model), documents, length))


def read_workload(table) -> Workload:
    """The workload of a WORKLOAD table: its path, or its rows as `make_workload` gives them."""
    if isinstance(table, str | Path):
        from ember.records.tables import read_rows

        table = read_rows(table, WORKLOAD)
    streams = {row["document"]: np.asarray(row["tokens"], dtype=np.int64) for row in table}
    shared = streams.pop(SHARED)
    return Workload(shared, tuple(streams[i] for i in sorted(streams)))


def random_streams(vocabulary: int, documents: int, length: int, seed: int):
    """Uniform ids; the documents' first tokens differ from each other while the vocabulary lasts.

    Returns (shared stream, document streams, source).
    """
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, vocabulary, length)
    own = rng.integers(0, vocabulary, (documents, length))
    own[:, 0] = np.resize(rng.permutation(vocabulary), documents)
    return shared, list(own), f"uniform ids of {vocabulary}, seed {seed}"


def text_streams(texts: Iterable[str], encode, documents: int, length: int):
    """Windows of tokenised text in the order of `texts`, the shared one first; none overlap.

    Windows start where their first token is not yet the first token of another document, so that
    two documents share the shared stream and nothing more. Returns (shared, documents, source).
    """
    pool = _tokenise(texts, encode, (documents + 1) * (length + 64))
    if len(pool) < (documents + 1) * length:
        raise WorkloadTooSmall(
            f"the corpus gives {len(pool)} tokens, {documents} documents of {length} tokens and "
            f"the shared stream need {(documents + 1) * length}\n"
            "raise the corpus's max_bytes, or lower the number of documents or the longest prompt"
        )
    shared, position, firsts, own = pool[:length], length, set(), []
    for left in range(documents, 0, -1):
        spare = len(pool) - position - left * length
        skip = next((i for i in range(spare + 1) if int(pool[position + i]) not in firsts), 0)
        position += skip
        firsts.add(int(pool[position]))
        own.append(pool[position : position + length])
        position += length
    return shared, own, "corpus"


def _tokenise(texts: Iterable[str], encode, wanted: int) -> np.ndarray:
    parts, total = [], 0
    for text in texts:
        ids = encode(text)
        parts.append(np.asarray(ids, dtype=np.int64))
        total += len(ids)
        if total >= wanted:
            break
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _texts(corpus: str | Path, seed: int) -> list[str]:
    """Texts of a corpus table, shuffled, those the model did not train on first."""
    from ember.records.tables import read_rows

    rows = read_rows(corpus)
    rng = np.random.default_rng(seed)
    texts = []
    for split in ("test", "validation", "train"):
        part = [row["text"] for row in rows if row["split"] == split]
        texts += [part[i] for i in rng.permutation(len(part))]
    return texts


def _encoder(model: str | Path):
    from ember.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(model))
    return lambda text: tokenizer.encode(text, parse_special=False)


def _rows(shared: Sequence[int], documents: Sequence[Sequence[int]], source: str) -> list[dict]:
    streams = [(SHARED, shared), *enumerate(documents)]
    log.info("workload: %d documents of %d tokens, %s", len(documents), len(shared), source)
    return [
        {"document": document, "tokens": [int(t) for t in ids], "source": source}
        for document, ids in streams
    ]
