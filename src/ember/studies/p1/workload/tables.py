"""Table of the shared-prefix workload (P1-2.2): one stream all documents share, one for each."""

from ember.records import schema as s

WORKLOAD = s.Schema(
    "workload",
    "Token streams from which prompts of any length are cut: shared[:prefix] + own[:rest]",
    (
        s.integer("document", "", "document, from 0; -1 is the stream that all share"),
        s.Column("tokens", "list[int]", "", "token ids"),
        s.text("source", "what the tokens are: name of a text, or how they were drawn"),
    ),
    key=("document",),
)
