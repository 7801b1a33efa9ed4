"""Texts that the low-bit studies run: pieces of a corpus's held-out documents."""

import random

from ember.records.errors import EmberError
from ember.studies.shared.corpora.make import join_corpora


class BadTexts(EmberError):
    """A corpus with too little held-out text."""


def passages(corpus, tokenizer, count: int, tokens: int, seed: int) -> list[str]:
    """`count` texts of about so many tokens, from places drawn in held-out documents.

    Raises BadTexts where no document is as long.
    """
    texts = [doc.text for doc in join_corpora([corpus]) if doc.split != "train"]
    encoded = tokenizer.encode_batch(texts, parse_special=False)
    long = [ids for ids in encoded if len(ids) >= tokens]
    if not long:
        raise BadTexts(
            f"no held-out document has {tokens} tokens\ngive the corpus longer texts, or ask for "
            "fewer tokens in the configuration's section lowbit"
        )
    draw, found = random.Random(seed), []
    for _ in range(count):
        ids = draw.choice(long)
        start = draw.randrange(len(ids) - tokens + 1)
        found.append(tokenizer.decode(ids[start : start + tokens]))
    return found
