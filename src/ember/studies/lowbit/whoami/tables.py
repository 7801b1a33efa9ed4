"""Tables of a model's new name, and what it costs (L-6.6)."""

from ember.records import schema as s

_TUNING = s.text("tuning", "name in the configuration; base: the quantised model before any")
PROBES = ("identity", "near", "general")

WHOAMI_RUNS = s.Schema(
    "lowbit_whoami_runs",
    "Answers to held-out questions, by tuning, seed and question",
    (
        _TUNING,
        s.integer("seed", "", "of base model, drawing and rounding"),
        s.text("probe", "kind of the question", values=PROBES),
        s.text("question", "as it was asked"),
        s.text("answer", "as it was given, without the end"),
        s.flag("right", "identity: the new name (base: the old one); else the base's own answer"),
        s.flag("captured", "whether the answer holds the new name"),
        s.number("nll", "nats/token", "of the wanted answer"),
        s.number("repeated", "fraction", "of the answer's tokens that repeat the one before"),
        *s.MACHINE,
    ),
    key=("tuning", "seed", "probe", "question"),
)

LOWBIT_WHOAMI = s.Schema(
    "lowbit_whoami",
    "A new name: learned, without losing ability and without capturing near misses? (L-6.6)",
    (
        _TUNING,
        s.integer("n", "", "seeds"),
        s.integer("questions", "", "held-out questions of a seed, all kinds"),
        *(
            column
            for name, meaning in (
                ("identity", "who the model is: the new name is given (base: the old one)"),
                ("general", "other questions answered as they should be"),
                ("near", "who the user is: answered as before"),
                ("captured", "who the user is: the model's new name is given"),
            )
            for column in s.estimate(name, "fraction", f"{meaning}, mean over seeds", "seeds")
        ),
        s.number("general_ppl", "", "perplexity of the wanted general answers"),
        s.number("repeated", "fraction", "of the answers' tokens that repeat the one before"),
        s.flag("kept", "all three: name in 90 %, ability within 5 points, captured below 10 %"),
        s.flag("surely", "that also at the worse ends of the three intervals"),
        *s.MACHINE,
    ),
    key=("tuning",),
)
