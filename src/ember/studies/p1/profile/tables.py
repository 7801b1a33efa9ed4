"""Tables of the rollout profile: one row per timed rollout, and its summary per point (P1-1.1)."""

from ember.records import schema as s
from ember.studies.measured import blank

MODES = ("single", "two_stage_overlap", "two_stage_serial")
PHASES = ("prefill", "decode", "sampling", "transfer", "total")

SUMMARISED = ("median", "mean", "std", "cv", "min", "max", "p10", "p50", "p90")

_POINT = (
    s.text("point", "readable id of mode, context and generation"),
    s.text(
        "mode",
        "single: one rollout on one device; two_stage_…: on two pipeline stages, with or without "
        "overlap; batched: prompts x candidates by continuous batching, on one device",
    ),
    s.integer("context", "tokens", "prompt length"),
    s.integer("generation", "tokens", "generated tokens of a sequence"),
    s.integer("batch", "sequences", "the most sequences that decode together"),
)

ROLLOUT_PROFILE = s.Schema(
    "rollout_profile",
    "Time of one rollout by phase, one row per repeat; skipped modes have one row and no times",
    (
        *_POINT,
        s.integer("repeat", "", "recorded run of the point, from 0; warm-up is not recorded"),
        s.maybe("prefill_ms", "ms", "the prompt, up to the logits of its last token"),
        s.maybe("decode_ms", "ms", "all single-token steps after the prompt"),
        s.maybe("sampling_ms", "ms", "choosing tokens from logits"),
        s.maybe("transfer_ms", "ms", "copies between host and device and between stages"),
        s.maybe("total_ms", "ms", "whole rollout by the wall clock, with what lies between phases"),
        s.maybe("tokens_per_s", "tokens/s", "generated tokens by total time"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("point", "repeat"),
)

PREFILL_SHARE = s.Schema(
    "prefill_share",
    "Rollout time by phase and the share of prefill in it, per point, alone and in a batch",
    (
        *_POINT,
        s.integer("prompts", "", "prompts of the call"),
        s.integer("candidates", "", "of each prompt"),
        s.integer("n", "", "recorded repeats"),
        *(c for p in PHASES for c in s.spread(f"{p}_ms", "ms", f"{p} time", SUMMARISED, s.maybe)),
        *s.spread("prefill_share", "fraction", "prefill time / total time", kind=s.maybe),
        s.maybe("tokens_per_s_median", "tokens/s", "median of generated tokens by total time"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("point",),
)


def profile_row(mode: str, context: int, generation: int, repeat: int, **values) -> dict:
    """A row of ROLLOUT_PROFILE; what `values` do not give is null, the status ok."""
    point = {"point": f"{mode}-{context}-{generation}", "mode": mode, "batch": 1}
    point |= {"context": context, "generation": generation, "repeat": repeat}
    return blank(ROLLOUT_PROFILE, **point, **values)
