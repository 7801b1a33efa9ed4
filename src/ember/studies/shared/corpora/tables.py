"""Tables of texts and of the models trained on them."""

from ember.records.schema import Schema, integer, text

SPLIT = text("split", "part of the corpus", values=("train", "validation", "test"))

CORPUS = Schema(
    "corpus",
    "Documents of a corpus, split so that no held-out text is trained on",
    (
        SPLIT,
        text("doc", "id of the document, the same on every machine"),
        text("source", "its origin", values=("stdlib", "pydoc", "files", "hub")),
        integer("bytes", "B", "length of the text as UTF-8"),
        text("sha256", "hash of the text as UTF-8"),
        text("text", "the text"),
    ),
    key=("doc",),
)
