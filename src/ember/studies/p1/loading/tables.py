"""Tables of loading times and of the time to the first token of a process."""

from ember.records.schema import (
    EVIDENCE,
    MODEL,
    OUTCOME,
    WEIGHTS,
    Schema,
    flag,
    integer,
    maybe,
    number,
    spread,
    text,
)

_WHAT = (
    text(
        "loader",
        "read: the bytes alone, the limit; ember: safetensors; transformers: "
        "from_pretrained; gguf: the gguf package's reader, tensors copied",
        values=("read", "ember", "transformers", "gguf"),
    ),
    text(
        "cache",
        "page cache before the load: cold, dropped; warm, read through",
        values=("cold", "warm"),
    ),
)
_MACHINE = (
    text("device", "where the weights went"),
    text("dtype", "number format in memory"),
    MODEL,
    WEIGHTS,
    EVIDENCE,
)

LOADING_RUNS = Schema(
    "loading_runs",
    "Loads of a model, each in a fresh process",
    (
        *_WHAT,
        integer("repeat", "", "recorded run; loaders take turns"),
        integer("bytes", "bytes", "of the files", nullable=True),
        maybe("import_s", "s", "importing what the loader needs"),
        maybe("load_s", "s", "until every page of the weights was touched"),
        maybe("mb_per_s", "MB/s", "bytes / load_s, 1e6 bytes"),
        maybe(
            "resident_share",
            "fraction",
            "of the files in the page cache before the load; null where the system does not tell",
        ),
        flag("verified", "whether resident_share confirms the page cache's state"),
        *_MACHINE,
        *OUTCOME,
    ),
    key=("loader", "cache", "repeat"),
)

LOADING = Schema(
    "loading",
    "Loading time of a model by loader and state of the page cache (P1-1.4)",
    (
        *_WHAT,
        integer("n", "", "recorded runs"),
        integer("bytes", "bytes", "of the files", nullable=True),
        *spread("load_s", "s", "load without imports", ("median", "mean", "std", "cv"), maybe),
        maybe("import_s_median", "s", "importing what the loader needs"),
        maybe("mb_per_s", "MB/s", "bytes / load_s, median"),
        maybe("limit_mb_per_s", "MB/s", "reading the files alone, same page cache, median"),
        maybe("share_of_limit", "fraction", "mb_per_s / limit"),
        flag("verified", "whether the page cache's state was confirmed"),
        *_MACHINE,
        *OUTCOME,
    ),
    key=("loader", "cache"),
)

FIRST_TOKEN = Schema(
    "first_token",
    "Whole processes of this engine, from their start to the first token (P1-1.4)",
    (
        integer("repeat", "", "recorded run"),
        integer("prompt_tokens", "tokens", "prompt length"),
        number("start_s", "s", "the interpreter, to 10 ms"),
        number("import_s", "s", "torch and the engine"),
        number("load_s", "s", "the model, files in the page cache"),
        number("prefill_s", "s", "the first prefill"),
        number("rest_s", "s", "packing, caches, kernels, sampling, transfer"),
        number("total_s", "s", "sum of the parts"),
        *_MACHINE,
    ),
    key=("repeat",),
)
