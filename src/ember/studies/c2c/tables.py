"""The table of questions: what each model reads, what may be answered, what is right."""

from ember.records import schema as s

C2C_ITEMS = s.Schema(
    "c2c_items",
    "Questions: what each model reads, what may be answered, what is right",
    (
        s.text("split", "development: for choices; test: for results"),
        s.integer("item", "", "number of the question in its split"),
        s.integer("group", "", "questions of one text share it"),
        s.text("stratum", "who knows the answer"),
        s.Column("sharer", "list[int]", "tokens", "what the sharer reads"),
        s.Column("receiver", "list[int]", "tokens", "the receiver's prompt, section by section"),
        s.Column("lengths", "list[int]", "tokens", "of its sections"),
        s.Column("fused", "list[int]", "", "1 for sections that take KV"),
        s.Column("index", "list[int]", "", "sharer's token of each of the receiver's, or -1"),
        s.Column("instruction", "list[int]", "", "1 for tokens of the instruction"),
        s.Column("choices", "list[int]", "tokens", "possible answers"),
        s.integer("right", "", "the right one"),
        s.Column("question", "list[int]", "tokens", "what the sharer is asked by itself"),
        s.Column("theirs", "list[int]", "tokens", "the choices, in the sharer's tokens"),
    ),
    key=("split", "item"),
)
