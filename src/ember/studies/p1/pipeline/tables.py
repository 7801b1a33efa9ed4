"""Tables of the pipeline: costs of its parts, timed runs, what each stage did when (P1-1.2)."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

MODES = ("single", "overlap", "no_overlap")

_MACHINE = (
    Column("device", "str", "", "where it ran"),
    Column("dtype", "str", "", "number format of weights and cache"),
    Column("model", "str", "", "name of the model"),
    WEIGHTS,
    EVIDENCE,
    STATUS,
    REASON,
)
_POINT = (
    Column("point", "str", "", "readable id of split and mode"),
    Column("split", "str", "", "layers of the first stage + layers of the second"),
    Column("first_layers", "int", "layers", "layers of the first stage; all of them in single"),
    Column(
        "mode",
        "str",
        "",
        "overlap: micro-batches in flight while the neighbour computes; no_overlap: one stage "
        "computes at a time; single: the one-device engine, all sequences in one batch",
        values=MODES,
    ),
    Column("context", "int", "tokens", "prompt length"),
    Column("generation", "int", "tokens", "generated tokens of a sequence"),
    Column("sequences", "int", "sequences", "sequences generated together"),
    Column("micro_batches", "int", "", "parts of the batch that are in flight one by one"),
    Column("chunks", "int", "", "pieces in which a prompt is prefilled"),
)


def _number(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "float", unit, meaning, nullable=True)


LAYER_COSTS = Schema(
    "layer_costs",
    "Time of every part of the model on one device, and of messages between two stages",
    (
        Column("phase", "str", "", "prefill or decode", values=("prefill", "decode")),
        Column(
            "part",
            "str",
            "",
            "layer N; embed and head: what they add to a layer; sample; call: of a decoding step "
            "beside its parts; hidden and tokens: one message of hidden states or tokens",
        ),
        Column("rows", "int", "sequences", "sequences of a micro-batch"),
        Column("tokens", "int", "tokens", "tokens of each: of a unit of prefill, or 1"),
        Column("cached", "int", "tokens", "tokens in the cache before"),
        Column("repeat", "int", "", "recorded run"),
        _number("ms", "ms", "time; a difference of times can be negative"),
        *_MACHINE,
    ),
    key=("phase", "part", "repeat"),
)

PIPELINE_RUNS = Schema(
    "pipeline_runs",
    "Timed runs of the pipeline, one row per repeat; a skipped point has one row and no times",
    (
        *_POINT,
        Column("repeat", "int", "", "recorded run of the point, from 0; warm-up is not recorded"),
        _number("total_ms", "ms", "first stage's start to the last token on the host"),
        _number("tokens_per_s", "tokens/s", "generated tokens of all sequences by total time"),
        _number("prefill_ms", "ms", "until every sequence had its first token"),
        _number("busy_first_ms", "ms", "time the first stage computed"),
        _number("busy_last_ms", "ms", "time the second stage computed"),
        _number(
            "transfer_ms",
            "ms",
            "time stages waited for messages that were on their way; what overlap hides is not in "
            "it",
        ),
        _number("bubble_share", "fraction", "1 - (busy_first_ms + busy_last_ms) / (2 total_ms)"),
        _number(
            "tokens_equal_share",
            "fraction",
            "tokens before a sequence's first difference from the one-device engine, mean",
        ),
        Column("forms", "str", "", "form of decoding of each stage", nullable=True),
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
        Column("stage", "int", "", "0 or 1"),
        Column(
            "kind",
            "str",
            "",
            "prefill, decode, sampling: computing; send: message handed over; receive: waiting "
            "with nothing else to do, until the message was there",
        ),
        Column("micro_batch", "int", "", "number of the micro-batch"),
        Column("step", "int", "", "0 in the prefill, then the decoding step"),
        Column("chunk", "int", "", "piece of the prompt, in the prefill"),
        Column("start_ms", "float", "ms", "since the run began"),
        Column("end_ms", "float", "ms", "since the run began"),
        Column("device", "str", "", "where it ran"),
        Column("model", "str", "", "name of the model"),
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
        Column("n", "int", "", "recorded repeats"),
        _number("tokens_per_s_median", "tokens/s", "median of tokens per second"),
        _number("tokens_per_s_mean", "tokens/s", "mean of tokens per second"),
        _number("tokens_per_s_std", "tokens/s", "standard deviation of tokens per second"),
        _number("tokens_per_s_cv", "", "std / mean"),
        _number("tokens_per_s_p10", "tokens/s", "10th percentile of tokens per second"),
        _number("tokens_per_s_p90", "tokens/s", "90th percentile of tokens per second"),
        _number("total_ms_median", "ms", "median of the whole run's time"),
        _number("prefill_ms_median", "ms", "median time until every sequence had its first token"),
        _number("busy_first_ms_median", "ms", "median time the first stage computed"),
        _number("busy_last_ms_median", "ms", "median time the second stage computed"),
        _number("transfer_ms_median", "ms", "median time stages waited for messages on their way"),
        _number(
            "bubble_share_median", "fraction", "median share of both stages' time not computing"
        ),
        _number("bubble_share_p10", "fraction", "10th percentile of the bubble share"),
        _number("bubble_share_p90", "fraction", "90th percentile of the bubble share"),
        _number("tokens_equal_share", "fraction", "least share of tokens equal to one device's"),
        _number("speedup_to_single", "", "tokens_per_s_median / that of the one-device engine"),
        Column(
            "standing",
            "str",
            "",
            "best: highest median of two stages; no difference: p10 to p90 overlaps that of the "
            "best; slower: it does not",
            nullable=True,
            values=("best", "no difference", "slower"),
        ),
        _number(
            "predicted_tokens_per_s", "tokens/s", "by the schedule and the costs on one device"
        ),
        _number("predicted_to_measured", "", "predicted_tokens_per_s / tokens_per_s_median"),
        _number("predicted_bubble_share", "fraction", "by the same schedule"),
        Column(
            "predicted_best",
            "bool",
            "",
            "the solver's split of all possible ones; without overlap all take equally long",
            nullable=True,
        ),
        Column(
            "predicted_best_split",
            "str",
            "",
            "the solver's split, also where it is not among those measured",
            nullable=True,
        ),
        _number("anchor_tokens_per_s", "tokens/s", "of the same point in the earlier stored run"),
        _number("delta_to_anchor", "fraction", "tokens_per_s_median / anchor_tokens_per_s - 1"),
        Column("anchor_note", "str", "", "why there is no delta, where there is an anchor", True),
        *_MACHINE,
    ),
    key=("point",),
)
