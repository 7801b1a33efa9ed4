"""Corpora as tables: one per configured corpus, and several of them joined for training."""

from collections.abc import Sequence

from ember.studies.rows import records
from ember.studies.shared.corpora.tables import CORPUS
from ember.studies.steps import makes
from ember.text import corpora


@makes(CORPUS)
def build_corpus(settings: dict, *, seed: int) -> list[dict]:
    """Rows of `CORPUS` for one entry of the config's corpora (`ember.config.shared.Corpus`).

    Raises `BadCorpus` where the source cannot be read, naming what to install or change.
    """
    limits = {"max_bytes": settings.get("max_bytes"), "seed": seed}
    match settings["source"]:
        case "stdlib":
            documents = corpora.stdlib_sources(**limits)
        case "packages":
            documents = corpora.package_sources(settings["packages"], **limits)
        case "pydoc":
            documents = corpora.pydoc_topics(**limits)
        case "files":
            documents = corpora.local_files(settings["paths"], **limits)
        case "hub":
            keys = ("hub_id", "name", "split", "column", "revision", "begins")
            chosen = {key: settings[key] for key in keys if settings.get(key) is not None}
            documents = corpora.hub_dataset(**chosen, **limits)
        case other:
            raise corpora.BadCorpus(
                f"unknown source {other!r} of a corpus.\nUse stdlib, packages, pydoc, files or hub."
            )
    return [
        {
            "split": doc.split,
            "doc": doc.doc_id,
            "source": doc.source,
            "bytes": len(doc.text.encode()),
            "sha256": doc.sha256,
            "text": doc.text,
        }
        for doc in documents
    ]


def join_corpora(tables: Sequence) -> list[corpora.Document]:
    """Documents of CORPUS tables (paths or rows), each text once, a trained text never held out."""
    documents: dict[str, corpora.Document] = {}
    for row in records(tables, CORPUS):
        known = documents.get(row["sha256"])
        if known is None or (known.split != "train" and row["split"] == "train"):
            documents[row["sha256"]] = corpora.Document(
                row["doc"], row["source"], row["text"], row["sha256"], row["split"]
            )
    # By hash: a mixture, and an order that no new document disturbs.
    return [documents[sha256] for sha256 in sorted(documents)]
