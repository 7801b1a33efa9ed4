"""Tables of the rollout profile: one row per timed rollout, and its summary per point (P1-1.1)."""

from ember.records.schema import MEASURED_ON, OUTCOME, Schema, integer, maybe, spread, text

MODES = ("single", "two_stage_overlap", "two_stage_serial")
PHASES = ("prefill", "decode", "sampling", "transfer", "total")

SUMMARISED = ("median", "mean", "std", "cv", "p10", "p50", "p90")

_POINT = (
    text("point", "readable id of mode, context and generation"),
    text("mode", "devices: single, or two pipeline stages with or without overlap"),
    integer("context", "tokens", "prompt length"),
    integer("generation", "tokens", "generated tokens of a sequence"),
    integer("batch", "sequences", "sequences generated together"),
)


ROLLOUT_PROFILE = Schema(
    "rollout_profile",
    "Time of one rollout by phase, one row per repeat; skipped modes have one row and no times",
    (
        *_POINT,
        integer("repeat", "", "recorded run of the point, from 0; warm-up is not recorded"),
        maybe("prefill_ms", "ms", "the prompt, up to the logits of its last token"),
        maybe("decode_ms", "ms", "all single-token steps after the prompt"),
        maybe("sampling_ms", "ms", "choosing tokens from logits"),
        maybe("transfer_ms", "ms", "copies between host and device and between stages"),
        maybe("total_ms", "ms", "whole rollout by the wall clock, with what lies between phases"),
        maybe("tokens_per_s", "tokens/s", "generated tokens by total time"),
        *MEASURED_ON,
        *OUTCOME,
    ),
    key=("point", "repeat"),
)


PREFILL_SHARE = Schema(
    "prefill_share",
    "Rollout time by phase and the share of prefill in it, per point",
    (
        *_POINT,
        integer("n", "", "recorded repeats"),
        *(c for p in PHASES for c in spread(f"{p}_ms", "ms", f"{p} time", SUMMARISED, maybe)),
        maybe("prefill_share", "fraction", "median over repeats of prefill time / total time"),
        maybe("prefill_share_p10", "fraction", "10th percentile of the share over repeats"),
        maybe("prefill_share_p90", "fraction", "90th percentile of the share over repeats"),
        maybe("tokens_per_s_median", "tokens/s", "median of tokens per second"),
        *MEASURED_ON,
        *OUTCOME,
    ),
    key=("point",),
)


def profile_row(mode: str, context: int, generation: int, repeat: int, **values) -> dict:
    """A row of ROLLOUT_PROFILE; what `values` do not give is null, the status ok."""
    point = {"point": f"{mode}-{context}-{generation}", "mode": mode}
    size = {"context": context, "generation": generation, "batch": 1, "repeat": repeat}
    times = {f"{phase}_ms": None for phase in PHASES} | {"tokens_per_s": None}
    return point | size | times | {"status": "ok", "reason": None} | values
