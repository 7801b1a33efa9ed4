"""Streams to evaluate on: held-out text in equal pieces, a start token before each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ember.model.folder import read_architecture
from ember.records.errors import EmberError
from ember.studies.shared.corpora.make import join_corpora
from ember.text.tokenizer import load_tokenizer

ENDS = ("\n", ".", '"', "'", "!", "?")  # of lines and sentences, and quotes


class BadStreams(EmberError):
    """A corpus too small for the streams asked for, or a model without a start token."""


def cut_streams(model: str | Path, corpus, settings: Mapping) -> np.ndarray:
    """Tokens (streams, tokens) int64 of a corpus's held-out documents, spread evenly over them.

    Each begins with the model's start token. `settings` has streams and tokens, and may say that
    the whole corpus is held out. Raises `BadStreams`.
    """
    arch, tokenizer = read_architecture(model), load_tokenizer(model)
    start = arch.bos_token_id
    if start is None:
        raise BadStreams(
            f"{Path(model).name} names no start token (bos_token_id in config.json): it has no "
            "sink to keep.\nChoose a model that was trained with one as streaming.model."
        )
    documents = join_corpora([corpus])
    texts = [doc.text for doc in documents if settings.get("whole") or doc.split != "train"]
    held_out = [
        token
        for tokens in tokenizer.encode_batch(texts, parse_special=False)
        for token in (*tokens, start)
    ]
    count, length = settings["streams"], settings["tokens"] - 1
    if len(held_out) < count * length:
        raise BadStreams(
            f"the held-out documents of corpus {settings['corpus']} have {len(held_out)} tokens, "
            f"{count} streams of {length} need {count * length}.\nGive the corpus more text, or "
            "lower streams or tokens in the configuration's section streaming."
        )
    starts = np.linspace(0, len(held_out) - length, count).astype(int)
    text = np.array(held_out, np.int64)
    return np.stack([np.r_[start, text[first : first + length]] for first in starts])


def check_peaks(model: str | Path, *peaks: int) -> None:
    """That a model was trained with as many tokens as a query is to see. Raises `BadStreams`.

    A model of the hub is not known while planning.
    """
    trained = read_architecture(model).max_positions
    if max(peaks) > trained:
        raise BadStreams(
            f"a peak of {max(peaks)} tokens is more than the {trained} that {Path(model).name} was "
            "trained with: sinks, window, new tokens and overlap must fit in.\n"
            "Lower the peaks in the configuration's section streaming."
        )


def structural_tokens(model: str | Path) -> np.ndarray:
    """Whether each token (V,) ends a line or a sentence, or is a quote."""
    tokenizer, vocabulary = load_tokenizer(model), read_architecture(model).vocab_size
    found = np.zeros(vocabulary, bool)
    for token in range(min(vocabulary, tokenizer.vocab_size)):
        found[token] = tokenizer.decode([token]).strip(" ").endswith(ENDS)
    return found
