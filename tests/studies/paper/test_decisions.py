"""Verdicts follow from tables and thresholds, and say so when the interval does not decide."""

import pytest

from ember.records.tables import read_table, write_table
from ember.studies.paper.decisions.summary import decide
from ember.studies.paper.decisions.tables import DECISIONS

THRESHOLDS = {
    "low_prefill_share": 0.3,
    "min_prefix_savings": 0.92,
    "min_engine_ratio": 3.0,
    "max_lora_difference": 1e-4,
    "max_lora_error_ratio": 1.0,
    "max_lora_ulp": 0.51,
    "max_lora_ulp_float32": 5.0,
    "max_lora_ratio_to_limit": 2.0,
}


OPERATING = {"prompts": 100, "candidates": 8, "rows": 256}
OPERATING |= {"context": 2048, "generation": 128, "prefix": 0}
SHARES = (
    (1.0, "batched", 2048, "100x8 in 256, 2048/128"),
    (0.2, "single", 2048, "single-2048-128"),
    # What the rule does not look at.
    (0.5, "batched", 2048, "100x8 in 64, 2048/128"),
    (0.5, "single", 4096, "single-4096-128"),
    (0.5, "two_stage_serial", 2048, "two_stage_serial-2048-128"),
)


def lora_tables(difference=1e-6, ratio=(0.8, 0.9), ulp=0.5, ms=1.5, exact=True):
    """Rows of alignment, weights, latency and exactness."""
    shared = {"adapter": "trained", "path": "merged", "reference": "peft_forward"}
    none = dict.fromkeys(("error_ratio", "error_ratio_low", "error_ratio_high"))
    low, high = ratio
    half = {"error_ratio": high, "error_ratio_low": low, "error_ratio_high": high}
    return (
        [
            shared | none | {"dtype": "float32", "delta_max_abs_diff": difference},
            shared | half | {"dtype": "bfloat16", "delta_max_abs_diff": 0.1},
        ],
        [{"dtype": d, "error_max_ulp": u} for d, u in (("float32", 3.0), ("bfloat16", ulp))],
        [
            {
                "implementation": who,
                "keep": "device",
                "operation": "replace",
                "phase": phase,
                "ms_median": ms,
                "ms_min": ms,
                "ms_max": ms,
                "n": 5,
                "limit_ms": 1.0,
                "ratio_to_limit": ms,
            }
            for who in ("ember", "peft")
            for phase in ("cold", "steady")
        ],
        [
            {
                "implementation": "ember",
                "keep": "device",
                "swaps": 100,
                "exact": exact,
                "max_abs_diff": 0.0 if exact else 0.1,
                "kept_bytes": 1,
                "model_bytes": 4,
            }
        ],
    )


def lora_verdicts(**change) -> dict:
    gates = [{"gate": "one", "status": "ok", "passed": True}]
    about = {"thresholds": THRESHOLDS, "operating": OPERATING, "scale": "smoke"}
    rows = decide(gates, [], [], [], *lora_tables(**change), **about)
    return {
        f"{row['decision']}: {row['subject']}": row["verdict"]
        for row in rows
        if row["decision"].startswith("lora_")
    }


@pytest.mark.parametrize(
    ("change", "subject", "verdict"),
    [
        ({}, "lora_alignment: float32 against peft_forward", "aligned"),
        (
            {"difference": 2e-4},
            "lora_alignment: float32 against peft_forward",
            "not aligned",
        ),
        ({}, "lora_alignment: bfloat16, merged", "smaller than PEFT's own error"),
        ({"ratio": (1.1, 1.2)}, "lora_alignment: bfloat16, merged", "larger than PEFT's own error"),
        ({"ratio": (0.9, 1.2)}, "lora_alignment: bfloat16, merged", "undecided"),
        ({}, "lora_weights: bfloat16", "as computed"),
        ({"ulp": 0.7}, "lora_weights: bfloat16", "not as computed"),
        ({}, "lora_latency: replace, base kept: device", "near the limit"),
        ({"ms": 3.0}, "lora_latency: replace, base kept: device", "falls short"),
        ({}, "lora_exact: ember, base kept: device", "exact"),
        ({"exact": False}, "lora_exact: ember, base kept: device", "drifts"),
    ],
)
def test_adapters_are_judged_by_their_tables(change, subject, verdict):
    found = lora_verdicts(**change)
    assert found[subject].startswith(verdict)
    assert len(found) == 6


def verdicts(share=(0.1, 0.2), savings=(0.93, 0.96), ratios=(3.5, 4.0), gates=(True, True)):
    rows = decide(
        [{"gate": str(i), "status": "ok", "passed": ok} for i, ok in enumerate(gates)],
        [
            {
                "status": "ok",
                "point": point,
                "mode": mode,
                "context": context,
                "generation": 128,
                "n": 5,
                "prefill_share_median": factor * sum(share) / 2,
                "prefill_share_min": factor * share[0],
                "prefill_share_max": factor * share[1],
            }
            for factor, mode, context, point in SHARES
        ],
        [
            {
                "prompt_tokens": 2048,
                "prefix_tokens": prefix,
                "documents": 8,
                "savings": 0.44,
                "expected_with_attention": 0.48,
                "ratio_to_operations": sum(savings) / 2,
                "ratio_low": savings[0],
                "ratio_high": savings[1],
            }
            for prefix in (512, 1024)
        ],
        [
            {"engine": engine, "ratio_to_transformers": ratio}
            for ratio in ratios
            for engine in ("ember", "transformers")
        ],
        *lora_tables(),
        thresholds=THRESHOLDS,
        operating=OPERATING,
        scale="smoke",
    )
    rows = [row for row in rows if not row["decision"].startswith("lora_")]
    # Of the share there are two: at the operating point, and of one rollout beside it.
    found = {
        row["subject"].split(",")[0] if i == 2 else row["decision"]: row
        for i, row in enumerate(rows)
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("share", "verdict"),
    [((0.1, 0.29), "low"), ((0.3, 0.4), "high"), ((0.2, 0.4), "undecided")],
)
def test_the_narrative_shifts_where_the_share_is_low(share, verdict):
    found = verdicts(share=share)
    assert found["prefill_share"]["subject"] == "operating point, 100x8 in 256, 2048/128"
    assert found["prefill_share"]["verdict"].startswith(verdict)
    alone = found["one rollout"]
    assert alone["subject"] == "one rollout, 2048/128"
    assert alone["value"] == pytest.approx(0.2 * sum(share) / 2)
    assert alone["verdict"].startswith("low")


@pytest.mark.parametrize(
    ("savings", "verdict"),
    [((0.92, 0.95), "reached"), ((0.7, 0.9), "falls short"), ((0.9, 0.95), "undecided")],
)
def test_prefix_reuse_is_judged_at_half_of_the_prompt(savings, verdict):
    row = verdicts(savings=savings)["prefix_savings"]
    assert row["subject"] == "half of 2048 tokens"
    assert row["verdict"].startswith(verdict)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((3.0, 5.0), "reached"), ((2.0, 2.9), "falls short"), ((2.0, 4.0), "undecided")],
)
def test_the_engine_is_judged_by_its_worst_and_best_run(ratios, verdict):
    assert verdicts(ratios=ratios)["engine_speed"]["verdict"].startswith(verdict)


def test_a_gate_that_does_not_hold_forbids_measuring():
    assert verdicts(gates=(True, False))["hard_gates"]["verdict"] == "do not measure"
    assert verdicts()["hard_gates"]["verdict"] == "measure"


def test_the_rows_fit_their_schema(tmp_path):
    path = tmp_path / "decisions.parquet"
    write_table(path, list(verdicts().values()), DECISIONS)
    assert len(read_table(path, DECISIONS)) == 5
