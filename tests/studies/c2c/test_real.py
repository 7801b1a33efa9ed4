"""Arithmetic of the table of real pairs, on answers drawn here."""

import pytest

from ember.studies.c2c.real.summary import NO_FUSER, NO_PAIR, PAIR, PUBLISHED, summarise_real
from ember.studies.c2c.real.tables import C2C_REAL_ANSWERS, C2C_REAL_STAGES, STAGES
from ember.studies.measured import blank

ABOUT = {
    "pair": "mine",
    "benchmark": "obqa",
    "device": "cpu",
    "dtype": "float32",
    "model": "mine",
    "weights": "pretrained",
    "evidence": "measured",
}


def answers(**methods):
    """Rows of each method from texts such as "AB-A": letters answered, - where none is read."""
    return [
        blank(C2C_REAL_ANSWERS)
        | ABOUT
        | {
            "method": method,
            "item": f"q-{number}",
            "right": "A",
            "answer": None if letter == "-" else letter,
            "correct": letter == "A",
            "failed": letter == "-",
            "output_tokens": 2 * number,
            "forced": "A" if letter == "-" else letter,
            "forced_correct": letter in "A-",
            "confidence": 0.5 if method == "receiver" else number / len(letters),
            "bytes": 100 if method == "c2c" else 0,
            "alignment": "off",
            "fuse_template": True,
        }
        for method, letters in methods.items()
        for number, letter in enumerate(letters)
    ]


def summarised(rows, stages=()):
    found = summarise_real([rows], [list(stages)], resamples=200, seed=0)
    return {r["method"]: r for r in found if r["evidence"] == "measured"}


def test_a_row_counts_answers_failures_and_gains():
    rows = summarised(answers(receiver="ABBBBBBB", sharer="BBBBBBAA", c2c="AAAAAA-B"))
    c2c, receiver = rows["c2c"], rows["receiver"]
    assert (c2c["n"], c2c["accuracy"], c2c["failures"]) == (8, 0.75, 0.125)
    assert (c2c["answered_a"], c2c["answered_b"], c2c["answered_c"]) == (0.75, 0.125, 0)
    assert c2c["forced_accuracy"] == 0.875
    assert c2c["gain"] == pytest.approx(0.625)
    assert 0 < c2c["gain_low"] <= c2c["gain"] <= c2c["gain_high"]
    assert c2c["p"] == pytest.approx(2 / 2**5)  # five answers differ, all one way
    assert (c2c["bytes"], c2c["output_tokens"]) == (100, 7)
    assert (receiver["gain"], receiver["p"]) == (None, None)
    assert (c2c["change"], receiver["change"]) == (None, pytest.approx(-0.625))
    assert receiver["change_p"] == c2c["p"]
    # The sharer is surer from the fifth question on; where both are right the oracle is, too.
    assert rows["routing"]["accuracy"] == 3 / 8
    assert rows["oracle"]["accuracy"] == 3 / 8
    tested = [row for row in rows.values() if row["p"] is not None]
    assert all(row["p_holm"] >= row["p"] for row in tested)
    assert c2c["p_holm"] == pytest.approx(min(1, len(tested) * c2c["p"]))


def test_times_are_added_up_by_stage():
    stages = [
        ABOUT | {"method": "c2c", "stage": stage, "ms": 2.0**n, "items": 4, "batch_size": 16}
        for n, stage in enumerate(STAGES)
    ]
    assert {*stages[0]} == {*C2C_REAL_STAGES.names}
    rows = summarised(answers(receiver="AB", sharer="AB", c2c="AA"), stages)
    assert rows["c2c"]["total_ms"] == 2 ** len(STAGES) - 1
    assert (rows["c2c"]["fuse_ms"], rows["c2c"]["batch_size"]) == (8, 16)
    assert rows["receiver"]["total_ms"] is None


def test_what_was_not_measured_says_why():
    rows = summarised(answers(receiver="AB", sharer="AB"))
    assert (rows["c2c"]["status"], rows["c2c"]["reason"]) == ("skipped", NO_FUSER)
    assert rows["self"]["accuracy"] is None
    empty = summarise_real([], [], resamples=100, seed=0)
    skipped = [row for row in empty if row["status"] == "skipped"]
    assert {row["reason"] for row in skipped} == {NO_PAIR}
    reference = [row for row in empty if row["evidence"] == "reference"]
    assert len(reference) == len(skipped) == sum(map(len, PUBLISHED.values()))
    assert {row["pair"] for row in empty} == {PAIR}
