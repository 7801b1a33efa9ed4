"""Tables of loading times and of the time to the first token of a process."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

_WHAT = (
    Column(
        "loader",
        "str",
        "",
        "read: the bytes alone, the limit; ember: safetensors; transformers: from_pretrained; "
        "gguf: the gguf package's reader, tensors copied",
        values=("read", "ember", "transformers", "gguf"),
    ),
    Column(
        "cache",
        "str",
        "",
        "page cache before the load: cold, dropped; warm, read through",
        values=("cold", "warm"),
    ),
)
_MACHINE = (
    Column("device", "str", "", "where the weights went"),
    Column("dtype", "str", "", "number format in memory"),
    Column("model", "str", "", "name of the model"),
    WEIGHTS,
    EVIDENCE,
)

LOADING_RUNS = Schema(
    "loading_runs",
    "Loads of a model, each in a fresh process",
    (
        *_WHAT,
        Column("repeat", "int", "", "recorded run; loaders take turns"),
        Column("bytes", "int", "bytes", "of the files", nullable=True),
        Column("import_s", "float", "s", "importing what the loader needs", nullable=True),
        Column(
            "load_s", "float", "s", "until every page of the weights was touched", nullable=True
        ),
        Column("mb_per_s", "float", "MB/s", "bytes / load_s, 1e6 bytes", nullable=True),
        Column(
            "resident_share",
            "float",
            "fraction",
            "of the files in the page cache before the load; null where the system does not tell",
            nullable=True,
        ),
        Column("verified", "bool", "", "whether resident_share confirms the page cache's state"),
        *_MACHINE,
        STATUS,
        REASON,
    ),
    key=("loader", "cache", "repeat"),
)

LOADING = Schema(
    "loading",
    "Loading time of a model by loader and state of the page cache (P1-1.4)",
    (
        *_WHAT,
        Column("n", "int", "", "recorded runs"),
        Column("bytes", "int", "bytes", "of the files", nullable=True),
        Column("load_s_median", "float", "s", "load without imports", nullable=True),
        Column("load_s_mean", "float", "s", "mean", nullable=True),
        Column("load_s_std", "float", "s", "standard deviation (n - 1)", nullable=True),
        Column("load_s_cv", "float", "", "std / mean", nullable=True),
        Column("import_s_median", "float", "s", "importing what the loader needs", nullable=True),
        Column("mb_per_s", "float", "MB/s", "bytes / load_s, median", nullable=True),
        Column(
            "limit_mb_per_s",
            "float",
            "MB/s",
            "reading the safetensors files alone, same page cache, median",
            nullable=True,
        ),
        Column("share_of_limit", "float", "fraction", "mb_per_s / limit", nullable=True),
        Column("verified", "bool", "", "whether the page cache's state was confirmed"),
        *_MACHINE,
        STATUS,
        REASON,
    ),
    key=("loader", "cache"),
)

FIRST_TOKEN = Schema(
    "first_token",
    "Whole processes of this engine, from their start to the first token (P1-1.4)",
    (
        Column("repeat", "int", "", "recorded run"),
        Column("prompt_tokens", "int", "tokens", "prompt length"),
        Column("start_s", "float", "s", "the interpreter, to 10 ms"),
        Column("import_s", "float", "s", "torch and the engine"),
        Column("load_s", "float", "s", "the model, files in the page cache"),
        Column("prefill_s", "float", "s", "the first prefill"),
        Column("rest_s", "float", "s", "packing, caches, kernels, sampling, transfer"),
        Column("total_s", "float", "s", "sum of the parts"),
        *_MACHINE,
    ),
    key=("repeat",),
)
