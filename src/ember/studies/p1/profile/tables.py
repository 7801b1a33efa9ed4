"""Tables of the rollout profile: one row per timed rollout, and its summary per point (P1-1.1)."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

MODES = ("single", "two_stage_overlap", "two_stage_serial")
PHASES = ("prefill", "decode", "sampling", "transfer", "total")

_POINT = Column("point", "str", "", "readable id of mode, context and generation")
_MODE = Column("mode", "str", "", "devices: single, or two pipeline stages with or without overlap")
_CONTEXT = Column("context", "int", "tokens", "prompt length")
_GENERATION = Column("generation", "int", "tokens", "generated tokens of a sequence")
_BATCH = Column("batch", "int", "sequences", "sequences generated together")
_MODEL = Column("model", "str", "", "name of the model")
_DEVICE = Column("device", "str", "", "where it ran")
_DTYPE = Column("dtype", "str", "", "number format of weights and cache")


def _time(name: str, meaning: str) -> Column:
    return Column(name, "float", "ms", meaning, nullable=True)


ROLLOUT_PROFILE = Schema(
    "rollout_profile",
    "Time of one rollout by phase, one row per repeat; skipped modes have one row and no times",
    (
        _POINT,
        _MODE,
        _CONTEXT,
        _GENERATION,
        _BATCH,
        Column("repeat", "int", "", "recorded run of the point, from 0; warm-up is not recorded"),
        _time("prefill_ms", "the prompt, up to the logits of its last token"),
        _time("decode_ms", "all single-token steps after the prompt"),
        _time("sampling_ms", "choosing tokens from logits"),
        _time("transfer_ms", "copies between host and device and between stages"),
        _time("total_ms", "whole rollout by the wall clock, bookkeeping between phases included"),
        Column(
            "tokens_per_s", "float", "tokens/s", "generated tokens by total time", nullable=True
        ),
        _DEVICE,
        _DTYPE,
        _MODEL,
        WEIGHTS,
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("point", "repeat"),
)


def _summary(phase: str) -> tuple[Column, ...]:
    return (
        _time(f"{phase}_ms_median", f"median of {phase} time"),
        _time(f"{phase}_ms_mean", f"mean of {phase} time"),
        _time(f"{phase}_ms_std", f"standard deviation of {phase} time"),
        Column(f"{phase}_ms_cv", "float", "", f"{phase} std / mean", nullable=True),
        _time(f"{phase}_ms_p10", f"10th percentile of {phase} time"),
        _time(f"{phase}_ms_p50", f"50th percentile of {phase} time, the median again"),
        _time(f"{phase}_ms_p90", f"90th percentile of {phase} time"),
    )


def _fraction(name: str, meaning: str) -> Column:
    return Column(name, "float", "fraction", meaning, nullable=True)


PREFILL_SHARE = Schema(
    "prefill_share",
    "Rollout time by phase and the share of prefill in it, per point",
    (
        _POINT,
        _MODE,
        _CONTEXT,
        _GENERATION,
        _BATCH,
        Column("n", "int", "", "recorded repeats"),
        *(column for phase in PHASES for column in _summary(phase)),
        _fraction("prefill_share", "median over repeats of prefill time / total time"),
        _fraction("prefill_share_p10", "10th percentile of the share over repeats"),
        _fraction("prefill_share_p90", "90th percentile of the share over repeats"),
        Column(
            "tokens_per_s_median", "float", "tokens/s", "median of tokens per second", nullable=True
        ),
        _DEVICE,
        _DTYPE,
        _MODEL,
        WEIGHTS,
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("point",),
)
