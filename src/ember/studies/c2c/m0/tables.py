"""Tables of C-M0: answers of baselines and controls, their accuracies, and times by stage."""

from ember.records import schema as s

STRATA = ("all", "sharer_only", "receiver_only", "shared", "neither", "no_context")

C2C_ANSWERS = s.Schema(
    "c2c_answers",
    "Answers of every baseline and control, question by question",
    (
        s.integer("seed", "", "seed of world, models and fuser"),
        s.text("method", "who answers"),
        s.integer("item", "", "number of the question"),
        s.integer("group", "", "questions of one text share it"),
        s.text("stratum", "who knows the answer"),
        s.integer("answer", "", "token answered"),
        s.integer("right", "", "token that is right"),
        s.flag("correct", "whether they are the same"),
        s.number("confidence", "", "the answer's probability among the choices"),
        s.number("right_odds", "", "the right answer's probability among them"),
        s.integer("bytes", "B", "sent from the sharer to the receiver"),
        *s.MEASURED_ON,
    ),
    key=("seed", "method", "item"),
)

C2C_M0 = s.Schema(
    "c2c_m0",
    "The channel at FP16 against baselines and controls, by who knows the answer (C-M0)",
    (
        s.text("method", "who answers"),
        s.text("stratum", "who knows the answer; all: every question", values=STRATA),
        s.integer("questions", "", "that were asked"),
        s.integer("groups", "texts", "that they are about"),
        s.integer("seeds", "", "of world, models and fuser"),
        s.number("accuracy", "fraction", "answered right"),
        s.number("low", "fraction", "95 % interval over texts of all seeds, lower end"),
        s.number("high", "fraction", "95 % interval, upper end"),
        s.number("seed_min", "fraction", "accuracy of the worst seed"),
        s.number("seed_max", "fraction", "accuracy of the best seed"),
        s.number("chance", "fraction", "one over the number of choices"),
        *s.estimate(
            "gain", "fraction", "above the receiver alone, paired by text", "texts", s.maybe
        ),
        s.maybe("p", "", "sign-flip test of it over texts"),
        s.maybe("p_holm", "", "adjusted for all methods of the stratum (Holm)"),
        s.number("bytes", "B", "sent for a question, mean"),
        s.text("recipe", "what deviates from the published recipe"),
        *s.MEASURED_ON,
    ),
    key=("method", "stratum"),
)

C2C_STAGES = s.Schema(
    "c2c_stages",
    "Times of the channel's stages, run by run",
    (
        s.integer("batch_size", "items", "at once"),
        s.flag("compiled", "whether the fuser is compiled"),
        s.flag("shared", "whether questions about one text share its prefill and what is sent"),
        s.integer("repeat", "", "number of the run"),
        s.integer("items_timed", "items", "answered in the run"),
        s.number("sharer_prefill_ms", "ms/item", "the sharer reads"),
        s.number("transmit_ms", "ms/item", "rounding to FP16"),
        s.number("receiver_prefill_ms", "ms/item", "the receiver reads what comes first"),
        s.number("fuse_ms", "ms/item", "projection and fusion"),
        s.number("answer_ms", "ms/item", "the last section, to the logits"),
        s.number("total_ms", "ms/item", "by the host's clock"),
        s.flag("same_answers", "whether every answer is that of items run alone"),
        *s.MEASURED_ON,
    ),
    key=("batch_size", "compiled", "shared", "repeat"),
)

C2C_SPEED = s.Schema(
    "c2c_speed",
    "What batches and compilation of the fuser save",
    (
        s.integer("batch_size", "items", "at once"),
        s.flag("compiled", "whether the fuser is compiled"),
        s.flag("shared", "whether questions about one text share its prefill and what is sent"),
        s.integer("n", "runs", "measured"),
        s.integer("items_timed", "items", "answered in each"),
        *s.spread("sharer_prefill_ms", "ms/item", "the sharer reads", ("median",)),
        *s.spread("transmit_ms", "ms/item", "rounding to FP16", ("median",)),
        *s.spread("receiver_prefill_ms", "ms/item", "the receiver reads", ("median",)),
        *s.spread("fuse_ms", "ms/item", "projection and fusion", ("median",)),
        *s.spread("answer_ms", "ms/item", "the last section", ("median",)),
        *s.spread("total_ms", "ms/item", "by the host's clock", ("median", "min", "max")),
        s.number("speed_up", "", "against items one by one, not compiled"),
        s.flag("same_answers", "whether every answer is that of items run alone"),
        *s.MEASURED_ON,
    ),
    key=("batch_size", "compiled", "shared"),
)
