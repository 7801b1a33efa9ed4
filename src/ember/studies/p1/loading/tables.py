"""Tables of loading times and of the time to the first token of a process."""

from ember.records import schema as s

_WHAT = (
    s.text(
        "loader",
        "read: the bytes alone, the limit; gguf: the gguf package, tensors copied",
        values=("read", "ember", "transformers", "gguf"),
    ),
    s.text("cache", "page cache before the load", values=("cold", "warm")),
)

_STATISTICS = ("median", "min", "max", "mean", "std", "cv")

LOADING_RUNS = s.Schema(
    "loading_runs",
    "Loads of a model, each in a fresh process",
    (
        *_WHAT,
        s.integer("repeat", "", "recorded run; loaders take turns"),
        s.integer("bytes", "bytes", "of the files", nullable=True),
        s.maybe("import_s", "s", "importing what the loader needs"),
        s.maybe("load_s", "s", "until every page of the weights was touched"),
        s.maybe("mb_per_s", "MB/s", "bytes / load_s, 1e6 bytes"),
        s.maybe("resident_share", "fraction", "of the files in the page cache before"),
        s.flag("verified", "whether resident_share confirms the page cache's state"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("loader", "cache", "repeat"),
)

LOADING = s.Schema(
    "loading",
    "Loading time of a model by loader and state of the page cache (P1-1.4)",
    (
        *_WHAT,
        s.integer("n", "", "recorded runs"),
        s.integer("bytes", "bytes", "of the files", nullable=True),
        *s.spread("load_s", "s", "load without imports", _STATISTICS, s.maybe),
        s.maybe("import_s_median", "s", "importing what the loader needs"),
        s.maybe("mb_per_s", "MB/s", "bytes / load_s, median"),
        s.maybe("limit_mb_per_s", "MB/s", "reading the files alone, same page cache, median"),
        s.maybe("share_of_limit", "fraction", "mb_per_s / limit"),
        s.flag("verified", "whether the page cache's state was confirmed"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("loader", "cache"),
)

FIRST_TOKEN = s.Schema(
    "first_token",
    "Whole processes of this engine, from their start to the first token (P1-1.4)",
    (
        s.integer("repeat", "", "recorded run"),
        s.integer("prompt_tokens", "tokens", "prompt length"),
        s.number("start_s", "s", "the interpreter, to 10 ms"),
        s.number("import_s", "s", "torch and the engine"),
        s.number("load_s", "s", "the model, files in the page cache"),
        s.number("prefill_s", "s", "the first prefill"),
        s.number("rest_s", "s", "packing, caches, kernels, sampling, transfer"),
        s.number("total_s", "s", "sum of the parts"),
        *s.MEASURED_ON,
    ),
    key=("repeat",),
)
