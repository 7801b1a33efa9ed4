"""Tables of texts and of the models trained on them."""

from ember.records import schema as s

SPLIT = s.text("split", "part of the corpus", values=("train", "validation", "test"))

CORPUS = s.Schema(
    "corpus",
    "Documents of a corpus, split so that no held-out text is trained on",
    (
        SPLIT,
        s.text("doc", "id of the document, the same on every machine"),
        s.text("source", "its origin", values=("stdlib", "packages", "pydoc", "files", "hub")),
        s.integer("bytes", "B", "length of the text as UTF-8"),
        s.text("sha256", "hash of the text as UTF-8"),
        s.text("text", "the text"),
    ),
    key=("doc",),
)
