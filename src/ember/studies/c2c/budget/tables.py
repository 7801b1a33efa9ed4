"""Accuracy against bytes over all studies of the channel, and what follows (C-M4)."""

from ember.records import schema as s
from ember.studies.c2c.point_tables import compared

C2C_M4 = compared(
    "c2c_m4",
    "Every point of the channel: accuracy against measured bytes",
    s.flag("oracle", "whether choosing needs the receiver's own KV, whose traffic is charged"),
    s.flag("front", "whether no point of the stratum is as good with fewer bytes"),
    s.number("accuracy_per_byte", "1/bytes", "accuracy over measured bytes"),
)

C2C_DECISIONS = s.Schema(
    "c2c_decisions",
    "What was expected of the channel, the goals, and what was found",
    (
        s.text("decision", "what is asked"),
        s.text("kind", "expectation of the programme, goal, or tripwire"),
        s.text("point", "point that answers it", nullable=True),
        s.text("other", "what it is compared with", nullable=True),
        s.integer("questions", "", "on which", nullable=True),
        s.integer("seeds", "", "worlds", nullable=True),
        s.maybe("value", "", "difference of accuracy, or what is named in the note"),
        s.maybe("low", "", "lower end of its interval"),
        s.maybe("high", "", "upper end"),
        s.maybe("p", "", "of the paired test; null where none is made"),
        s.maybe("p_holm", "", "corrected for all of the table's tests (Holm)"),
        s.text("verdict", "what follows"),
        s.flag("holds", "whether the expectation or goal holds, the tripwire is not touched"),
        s.text("note", "what was measured"),
        *s.SOURCE,
    ),
    key=("decision",),
)
