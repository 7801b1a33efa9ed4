"""Verdicts follow from tables and thresholds, and say so when the interval does not decide."""

import pytest

from ember.experiments.decisions import decide
from ember.records.schemas.decisions import DECISIONS
from ember.records.tables import read_table, write_table

THRESHOLDS = {"low_prefill_share": 0.3, "min_prefix_savings": 0.45, "min_engine_ratio": 3.0}


def verdicts(share=(0.1, 0.2), savings=(0.5, 0.6), ratios=(3.5, 4.0), gates=(True, True)):
    rows = decide(
        [{"gate": str(i), "status": "ok", "passed": ok} for i, ok in enumerate(gates)],
        [
            {
                "status": "ok",
                "mode": "single",
                "context": 2048,
                "generation": 128,
                "n": 5,
                "prefill_share": sum(share) / 2,
                "prefill_share_p10": share[0],
                "prefill_share_p90": share[1],
            }
        ],
        [
            {
                "prompt_tokens": 2048,
                "prefix_tokens": prefix,
                "documents": 8,
                "savings": sum(savings) / 2,
                "savings_low": savings[0],
                "savings_high": savings[1],
                "expected_with_attention": 0.48,
            }
            for prefix in (512, 1024)
        ],
        [
            {"engine": engine, "ratio_to_transformers": ratio}
            for ratio in ratios
            for engine in ("ember", "transformers")
        ],
        thresholds=THRESHOLDS,
        scale="smoke",
    )
    found = {row["decision"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("share", "verdict"),
    [((0.1, 0.29), "low"), ((0.3, 0.4), "high"), ((0.2, 0.4), "undecided")],
)
def test_the_narrative_shifts_where_the_share_is_low(share, verdict):
    assert verdicts(share=share)["prefill_share"]["verdict"].startswith(verdict)


@pytest.mark.parametrize(
    ("savings", "verdict"),
    [((0.45, 0.5), "worth it"), ((0.3, 0.44), "falls short"), ((0.4, 0.5), "undecided")],
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
    assert len(read_table(path, DECISIONS)) == 4
