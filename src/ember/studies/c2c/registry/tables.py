"""The registry of C2C runs (C-R)."""

from ember.records import schema as s
from ember.studies.c2c.point_tables import FAMILY, POINT

C2C_REGISTRY = s.Schema(
    "c2c_registry",
    "Every run of the channel: what it was, what it was made with, what came of it",
    (
        s.text("key", "hash of the whole point: fields, models, questions, split, format, scale"),
        FAMILY,
        *POINT,
        s.integer("world", "", "seed of world, models and fuser"),
        s.text("split", "development: for choices; test: for results"),
        s.flag("limited", "whether a limit cut the evaluation"),
        s.text("alignment", "how tokens of two tokenizers are aligned; none: one tokenizer"),
        s.text("schedule_hash", "of the number formats by layer"),
        s.text("sharer", "hash of its checkpoint"),
        s.text("receiver", "hash of its checkpoint"),
        s.text("fuser", "hash of its checkpoint"),
        s.text("questions", "hash of their table"),
        s.text("settings", "hash of the job's parameters"),
        s.text("environment", "hash of the versions of Python and packages"),
        s.text("commit", "of the source; its tree's hash where there is none"),
        s.flag("dirty", "whether the source differed from the commit", nullable=True),
        s.integer("n", "questions", "that were asked"),
        s.number("accuracy", "fraction", "of them answered right"),
        s.number("measured_bytes", "bytes", "a question"),
        s.number("estimated_bytes", "bytes", "a question"),
        s.number("channel_ms", "ms", "choosing and quantising a passage"),
        s.number("fuse_ms", "ms", "projecting and fusing a passage"),
        s.text("started", "when its job began"),
        s.number("job_s", "s", "of the job that measured it, with all its points"),
        s.text("results", "table that holds it, question by question"),
        s.text("log", "of the job"),
        *s.MEASURED_ON,
    ),
    key=("key",),
)
