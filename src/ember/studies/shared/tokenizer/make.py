"""The workflow's tokenizer, trained on the training splits of its corpora."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ember.records.atomic import atomic_dir
from ember.studies.shared.corpora.make import join_corpora
from ember.studies.steps import makes
from ember.text.corpora import BadCorpus, Document
from ember.text.tokenizer import save_tokenizer, train_bpe

log = logging.getLogger(__name__)


@makes()
def train_tokenizer(corpora: Sequence, settings: dict, *, tokenizer: Path) -> dict:
    """Writes a tokenizer directory and returns its vocab_size, train_bytes and train_documents.

    `settings` is the config's tokenizer section; `tokenizer` is replaced as a whole.
    """
    texts = training_texts(join_corpora(corpora), settings["train_bytes"])
    backend = train_bpe(texts, settings["vocab_size"])
    facts = {
        "vocab_size": backend.get_vocab_size(),
        "train_bytes": sum(len(text.encode()) for text in texts),
        "train_documents": len(texts),
    }
    if facts["vocab_size"] < settings["vocab_size"]:
        log.warning(
            "the text has pairs for %d entries only, not the %d asked for",
            facts["vocab_size"],
            settings["vocab_size"],
        )
    with atomic_dir(Path(tokenizer)) as folder:
        save_tokenizer(backend, folder)
    log.info("tokenizer: %(vocab_size)d entries from %(train_bytes)d bytes", facts)
    return facts


def training_texts(documents: Sequence[Document], max_bytes: int) -> list[str]:
    """Texts of the training split up to `max_bytes` of UTF-8, the last one cut."""
    texts, free = [], max_bytes
    for doc in documents:
        if doc.split == "train" and free > 0:
            texts.append(doc.text.encode()[:free].decode("utf-8", "ignore"))
            free -= len(texts[-1].encode())
            if texts[-1] != doc.text:
                break
    if not texts:
        raise BadCorpus("the corpora have no training text.\nRaise max_bytes or name more files.")
    return texts
