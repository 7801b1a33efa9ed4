"""Tables of the pipeline: costs of its parts, timed runs, what each stage did when (P1-1.2)."""

from ember.records import schema as s

MODES = ("single", "overlap", "no_overlap")
SPEED = ("median", "mean", "std", "cv", "min", "max", "p10", "p90")

_MACHINE = (*s.MEASURED_ON, *s.OUTCOME)
_POINT = (
    s.text("point", "readable id of split and mode"),
    s.text("split", "layers of the first stage + layers of the second"),
    s.integer("first_layers", "layers", "layers of the first stage; all of them in single"),
    s.text("mode", "no_overlap: one stage at a time; single: one device, one batch", values=MODES),
    s.integer("context", "tokens", "prompt length"),
    s.integer("generation", "tokens", "generated tokens of a sequence"),
    s.integer("sequences", "sequences", "sequences generated together"),
    s.integer("micro_batches", "", "parts of the batch that are in flight one by one"),
    s.integer("chunks", "", "pieces in which a prompt is prefilled"),
)

LAYER_COSTS = s.Schema(
    "layer_costs",
    "Time of every part of the model on one device, and of messages between two stages",
    (
        s.text("phase", "prefill or decode", values=("prefill", "decode")),
        s.text("part", "layer N, embed, head, sample; call: the step's rest; a message's content"),
        s.integer("rows", "sequences", "sequences of a micro-batch"),
        s.integer("tokens", "tokens", "tokens of each: of a unit of prefill, or 1"),
        s.integer("cached", "tokens", "tokens in the cache before"),
        s.integer("repeat", "", "recorded run"),
        s.maybe("ms", "ms", "time; a difference of times can be negative"),
        *_MACHINE,
    ),
    key=("phase", "part", "repeat"),
)

PIPELINE_RUNS = s.Schema(
    "pipeline_runs",
    "Timed runs of the pipeline, one row per repeat; a skipped point has one row and no times",
    (
        *_POINT,
        s.integer("repeat", "", "recorded run of the point, from 0; warm-up is not recorded"),
        s.maybe("total_ms", "ms", "first stage's start to the last token on the host"),
        s.maybe("tokens_per_s", "tokens/s", "generated tokens of all sequences by total time"),
        s.maybe("prefill_ms", "ms", "until every sequence had its first token"),
        s.maybe("busy_first_ms", "ms", "time the first stage computed"),
        s.maybe("busy_last_ms", "ms", "time the second stage computed"),
        s.maybe("transfer_ms", "ms", "time stages waited for messages on their way"),
        s.maybe("bubble_share", "fraction", "1 - (busy_first_ms + busy_last_ms) / (2 total_ms)"),
        s.maybe("tokens_equal_share", "fraction", "leading ones equal to one device's, mean"),
        s.text("forms", "form of decoding of each stage", nullable=True),
        *_MACHINE,
    ),
    key=("point", "repeat"),
)

PIPELINE_EVENTS = s.Schema(
    "pipeline_events",
    "What each stage did for each micro-batch and when, in the first recorded run of a point",
    (
        _POINT[0],
        _POINT[1],
        _POINT[3],
        s.integer("stage", "", "0 or 1"),
        s.text("kind", "prefill, decode, sampling; send; receive: waiting for a message"),
        s.integer("micro_batch", "", "number of the micro-batch"),
        s.integer("step", "", "0 in the prefill, then the decoding step"),
        s.integer("chunk", "", "piece of the prompt, in the prefill"),
        s.number("start_ms", "ms", "since the run began"),
        s.number("end_ms", "ms", "since the run began"),
        s.DEVICE,
        *s.SOURCE,
    ),
    key=("point", "stage", "kind", "micro_batch", "step", "chunk"),
)

PIPELINE = s.Schema(
    "pipeline",
    "Two pipeline stages by split and overlap: measured, predicted, and against an earlier run",
    (
        *_POINT,
        s.integer("n", "", "recorded repeats"),
        *s.spread("tokens_per_s", "tokens/s", "tokens per second", SPEED, s.maybe),
        s.maybe("total_ms_median", "ms", "median of the whole run's time"),
        s.maybe("prefill_ms_median", "ms", "median time until every sequence had its first token"),
        s.maybe("busy_first_ms_median", "ms", "median time the first stage computed"),
        s.maybe("busy_last_ms_median", "ms", "median time the second stage computed"),
        s.maybe("transfer_ms_median", "ms", "median time stages waited for messages on their way"),
        *s.spread("bubble_share", "fraction", "both stages' time not computing", kind=s.maybe),
        s.maybe("tokens_equal_share", "fraction", "least share of tokens equal to one device's"),
        s.maybe("speedup_to_single", "", "tokens_per_s_median / that of the one-device engine"),
        s.text(
            "standing",
            "no difference: its runs' range (p10 to p90 from ten runs on) meets the best's",
            values=("best", "no difference", "slower"),
            nullable=True,
        ),
        s.maybe("predicted_tokens_per_s", "tokens/s", "by schedule and costs on one device"),
        s.maybe("predicted_to_measured", "", "predicted_tokens_per_s / tokens_per_s_median"),
        s.maybe("predicted_bubble_share", "fraction", "by the same schedule"),
        s.flag("predicted_best", "the solver's split, with overlap", nullable=True),
        s.text("predicted_best_split", "the solver's split, measured or not", nullable=True),
        s.maybe("anchor_tokens_per_s", "tokens/s", "of the same point in the earlier stored run"),
        s.maybe("delta_to_anchor", "fraction", "tokens_per_s_median / anchor_tokens_per_s - 1"),
        s.text("anchor_note", "why there is no delta, where there is an anchor", nullable=True),
        *_MACHINE,
    ),
    key=("point",),
)
