"""Tables of the pipeline: costs of its parts, timed runs, what each stage did when (P1-1.2)."""

from ember.records.schema import (
    DEVICE,
    EVIDENCE,
    MEASURED_ON,
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

MODES = ("single", "overlap", "no_overlap")
SPEED = ("median", "mean", "std", "cv", "p10", "p90")

_MACHINE = (
    *MEASURED_ON,
    *OUTCOME,
)
_POINT = (
    text("point", "readable id of split and mode"),
    text("split", "layers of the first stage + layers of the second"),
    integer("first_layers", "layers", "layers of the first stage; all of them in single"),
    text(
        "mode",
        "overlap: micro-batches in flight while the neighbour computes; no_overlap: one "
        "stage computes at a time; single: the one-device engine, all sequences in one "
        "batch",
        values=MODES,
    ),
    integer("context", "tokens", "prompt length"),
    integer("generation", "tokens", "generated tokens of a sequence"),
    integer("sequences", "sequences", "sequences generated together"),
    integer("micro_batches", "", "parts of the batch that are in flight one by one"),
    integer("chunks", "", "pieces in which a prompt is prefilled"),
)


LAYER_COSTS = Schema(
    "layer_costs",
    "Time of every part of the model on one device, and of messages between two stages",
    (
        text("phase", "prefill or decode", values=("prefill", "decode")),
        text(
            "part",
            "layer N; embed and head: what they add to a layer; sample; call: of a "
            "decoding step beside its parts; hidden and tokens: one message of hidden "
            "states or tokens",
        ),
        integer("rows", "sequences", "sequences of a micro-batch"),
        integer("tokens", "tokens", "tokens of each: of a unit of prefill, or 1"),
        integer("cached", "tokens", "tokens in the cache before"),
        integer("repeat", "", "recorded run"),
        maybe("ms", "ms", "time; a difference of times can be negative"),
        *_MACHINE,
    ),
    key=("phase", "part", "repeat"),
)

PIPELINE_RUNS = Schema(
    "pipeline_runs",
    "Timed runs of the pipeline, one row per repeat; a skipped point has one row and no times",
    (
        *_POINT,
        integer("repeat", "", "recorded run of the point, from 0; warm-up is not recorded"),
        maybe("total_ms", "ms", "first stage's start to the last token on the host"),
        maybe("tokens_per_s", "tokens/s", "generated tokens of all sequences by total time"),
        maybe("prefill_ms", "ms", "until every sequence had its first token"),
        maybe("busy_first_ms", "ms", "time the first stage computed"),
        maybe("busy_last_ms", "ms", "time the second stage computed"),
        maybe(
            "transfer_ms",
            "ms",
            "time stages waited for messages that were on their way; what overlap hides "
            "is not in it",
        ),
        maybe("bubble_share", "fraction", "1 - (busy_first_ms + busy_last_ms) / (2 total_ms)"),
        maybe(
            "tokens_equal_share",
            "fraction",
            "tokens before a sequence's first difference from the one-device engine, mean",
        ),
        text("forms", "form of decoding of each stage", nullable=True),
        *_MACHINE,
    ),
    key=("point", "repeat"),
)

PIPELINE_EVENTS = Schema(
    "pipeline_events",
    "What each stage did for each micro-batch and when, in the first recorded run of a point",
    (
        _POINT[0],
        _POINT[1],
        _POINT[3],
        integer("stage", "", "0 or 1"),
        text(
            "kind",
            "prefill, decode, sampling: computing; send: message handed over; receive: "
            "waiting with nothing else to do, until the message was there",
        ),
        integer("micro_batch", "", "number of the micro-batch"),
        integer("step", "", "0 in the prefill, then the decoding step"),
        integer("chunk", "", "piece of the prompt, in the prefill"),
        number("start_ms", "ms", "since the run began"),
        number("end_ms", "ms", "since the run began"),
        DEVICE,
        MODEL,
        WEIGHTS,
        EVIDENCE,
    ),
    key=("point", "stage", "kind", "micro_batch", "step", "chunk"),
)

PIPELINE = Schema(
    "pipeline",
    "Two pipeline stages by split and overlap: measured, predicted, and against an earlier run",
    (
        *_POINT,
        integer("n", "", "recorded repeats"),
        *spread("tokens_per_s", "tokens/s", "tokens per second", SPEED, maybe),
        maybe("total_ms_median", "ms", "median of the whole run's time"),
        maybe("prefill_ms_median", "ms", "median time until every sequence had its first token"),
        maybe("busy_first_ms_median", "ms", "median time the first stage computed"),
        maybe("busy_last_ms_median", "ms", "median time the second stage computed"),
        maybe("transfer_ms_median", "ms", "median time stages waited for messages on their way"),
        *spread("bubble_share", "fraction", "share of both stages' time not computing", kind=maybe),
        maybe("tokens_equal_share", "fraction", "least share of tokens equal to one device's"),
        maybe("speedup_to_single", "", "tokens_per_s_median / that of the one-device engine"),
        text(
            "standing",
            "best: highest median of two stages; no difference: p10 to p90 overlaps that "
            "of the best; slower: it does not",
            values=("best", "no difference", "slower"),
            nullable=True,
        ),
        maybe("predicted_tokens_per_s", "tokens/s", "by the schedule and the costs on one device"),
        maybe("predicted_to_measured", "", "predicted_tokens_per_s / tokens_per_s_median"),
        maybe("predicted_bubble_share", "fraction", "by the same schedule"),
        flag(
            "predicted_best",
            "the solver's split of all possible ones; without overlap all take equally long",
            nullable=True,
        ),
        text("predicted_best_split", "the solver's split, measured or not", nullable=True),
        maybe("anchor_tokens_per_s", "tokens/s", "of the same point in the earlier stored run"),
        maybe("delta_to_anchor", "fraction", "tokens_per_s_median / anchor_tokens_per_s - 1"),
        text("anchor_note", "why there is no delta, where there is an anchor", nullable=True),
        *_MACHINE,
    ),
    key=("point",),
)
