"""Tables of real pairs: questions, answers, times of stages, and accuracies (C-M0, A1 and A2)."""

from ember.records import schema as s

STAGES = ("sharer_prefill", "transmit", "receiver_prefill", "fuse", "answer")
_ABOUT = (
    s.text("pair", "receiver and sharer"),
    s.text("benchmark", "whose questions are asked"),
    s.text("method", "who answers; or a point of the channel by its id"),
)

C2C_QUESTIONS = s.Schema(
    "c2c_questions",
    "Multiple-choice questions of a benchmark",
    (
        s.text("item", "the question's id"),
        s.text("question", "what is asked"),
        s.text("choices", "JSON list, the choice of letter A first"),
        s.text("right", "letter of the right choice"),
    ),
    key=("item",),
)

C2C_REAL_ANSWERS = s.Schema(
    "c2c_real_answers",
    "Answers of real models, question by question",
    (
        *_ABOUT,
        s.text("item", "the question's id"),
        s.text("right", "letter of the right choice"),
        s.text("answer", "letter that was read from the text; null: none", nullable=True),
        s.flag("correct", "whether they are the same"),
        s.flag("failed", "whether no letter could be read"),
        s.text("text", "what was written"),
        s.integer("output_tokens", "tokens", "that were written"),
        s.text("forced", "likeliest letter after the opening of the answer"),
        s.flag("forced_correct", "whether it is right"),
        s.number("confidence", "", "its probability among the letters"),
        s.integer("bytes", "B", "from the sharer to the receiver"),
        s.text("alignment", "of tokens"),
        s.flag("fuse_template", "whether template tokens are fused"),
        *s.MEASURED_ON,
    ),
    key=("pair", "benchmark", "method", "item"),
)

C2C_REAL_STAGES = s.Schema(
    "c2c_real_stages",
    "Times of a method's stages, over all questions of one run",
    (
        *_ABOUT,
        s.text("stage", "what was timed", values=STAGES),
        s.number("ms", "ms/item", "time a question"),
        s.integer("items", "questions", "that were timed"),
        s.integer("batch_size", "questions", "at once, at most"),
        *s.MEASURED_ON,
    ),
    key=("pair", "benchmark", "method", "stage"),
)

C2C_REAL = s.Schema(
    "c2c_real",
    "Real pairs against baselines and controls (C-M0), and what was published",
    (
        *_ABOUT,
        *s.OUTCOME,
        s.integer("n", "questions", "that were asked", nullable=True),
        s.maybe("accuracy", "fraction", "answered right, by the letter in the text"),
        s.maybe("low", "fraction", "95 % interval over questions, lower end"),
        s.maybe("high", "fraction", "95 % interval, upper end"),
        *s.estimate(
            "gain", "fraction", "above the receiver alone, paired by question", "questions", s.maybe
        ),
        s.maybe("p", "", "sign-flip test of it"),
        s.maybe("p_holm", "", "adjusted for all methods of the pair and benchmark (Holm)"),
        *s.estimate(
            "change", "fraction", "against C2C at FP16, paired by question", "questions", s.maybe
        ),
        s.maybe("change_p", "", "sign-flip test of it"),
        s.maybe("forced_accuracy", "fraction", "right by the likeliest letter"),
        s.maybe("forced_low", "fraction", "95 % interval, lower end"),
        s.maybe("forced_high", "fraction", "95 % interval, upper end"),
        *(s.maybe(f"answered_{x}", "fraction", f"that answered {x.upper()}") for x in "abcde"),
        s.maybe("failures", "fraction", "of which no letter could be read"),
        s.maybe("output_tokens", "tokens", "that were written, mean"),
        s.maybe("bytes", "B", "from the sharer to the receiver, mean"),
        *(s.maybe(f"{stage}_ms", "ms/item", f"time of the stage {stage}") for stage in STAGES),
        s.maybe("total_ms", "ms/item", "of all stages; of a published row as published"),
        s.integer("batch_size", "questions", "at once, at most", nullable=True),
        s.text("alignment", "of tokens", nullable=True),
        s.flag("fuse_template", "whether template tokens are fused", nullable=True),
        s.text("device", "where it ran", nullable=True),
        s.text("dtype", "number format of weights and cache", nullable=True),
        *s.SOURCE,
    ),
    key=("pair", "benchmark", "method", "evidence"),
)
