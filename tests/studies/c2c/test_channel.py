"""Arithmetic of the channel's studies, on tables made by hand."""

import numpy as np
import pytest

from ember.c2c.points import point
from ember.formats.pairs import RAW
from ember.studies.c2c.budget.summary import (
    ByteDrift,
    check_drift,
    decide_channel,
    mark_front,
    summarise_budget,
)
from ember.studies.c2c.compare import BadComparison, Comparison, at_equal_bytes
from ember.studies.c2c.layers.measure import planned, spread
from ember.studies.c2c.layers.summary import summarise_layers, summarise_sensitivity
from ember.studies.c2c.ptq.measure import histogram
from ember.studies.c2c.ptq.summary import summarise_ptq
from ember.studies.c2c.selection.summary import summarise_selection

JUDGED = {"strata": ["asked", "all"], "margin": 0.02, "max_drift": 0.15, "difficulty": [0.8, 0.9]}
TEST = {"judged": JUDGED, "seed": 0, "resamples": 300}


def answers(accuracy: float, count: int = 400, seed: int = 0) -> list[int]:
    """Right with this probability, the same questions right at a higher accuracy."""
    return [int(x < accuracy) for x in np.random.default_rng(seed).random(count)]


def row(family="ptq", size=100.0, accuracy=0.9, world=1, stratum="asked", **said) -> dict:
    made = point(**said)
    count = 400
    return {
        **made,
        "family": family,
        "world": world,
        "split": "test",
        "stratum": stratum,
        "items": list(range(count)),
        "groups": [n // 4 for n in range(count)],
        "correct": answers(accuracy, count, world),
        "nll": [0.1] * count,
        "limited": False,
        "tokens": 10.0 * made["proportion"],
        "passage_tokens": 10.0,
        "estimated_bytes": 0.95 * size,
        "measured_bytes": size,
        "charged_bytes": 0.0,
        "header_bytes": 0.05 * size,
        "elements": 5,
        "channel_ms": 1.0,
        "fuse_ms": 1.0,
        "device": "cpu",
        "dtype": "float32",
        "model": "c2c pair",
        "weights": "trained",
        "evidence": "measured",
    }


def test_points_are_compared_with_fp16_on_the_same_questions():
    runs = [row(world=1), row(world=2), row(scheme="int8", size=50, accuracy=0.6, world=1)]
    runs += [row(scheme="int8", size=50, accuracy=0.6, world=2)]
    found = {(r["point"], r["stratum"]): r for r in summarise_ptq([runs], **TEST)}
    full, int8 = found["fp16", "asked"], found["int8-token", "asked"]
    assert (full["difference"], full["p"], full["non_inferior"]) == (0, 1, True)
    expected = np.mean([answers(0.6, seed=w) for w in (1, 2)])
    assert int8["accuracy"] == pytest.approx(expected)
    assert int8["difference"] == pytest.approx(int8["accuracy"] - full["accuracy"])
    assert int8["difference_low"] < int8["difference"] < int8["difference_high"] < 0
    assert int8["p_holm"] < 0.05
    assert not int8["non_inferior"]
    assert (int8["questions"], int8["seeds"], int8["row"]) == (800, 2, "B1")
    assert int8["bytes_share"] == 0.5
    assert int8["effective_bits"] == 8 * 50 / (5 * 10)
    assert int8["drift"] == pytest.approx(0.05)
    assert int8["accuracy_min"] < int8["accuracy"] < int8["accuracy_max"]


def test_intervals_are_of_passages_not_of_questions():
    """Four equal answers about each passage say no more than one."""
    one = row(scheme="int8", accuracy=0.5)
    clustered = [answers(0.5)[n // 4] for n in range(400)]
    alone = Comparison([[row(), one]], ["asked"], 0, 2000)
    together = Comparison([[row(), one | {"correct": clustered}]], ["asked"], 0, 2000)
    widths = []
    for made in (alone, together):
        _, low, high = made.accuracy(made.points["ptq", "int8-token"]["asked"])
        widths.append(high - low)
    assert 1.7 < widths[1] / widths[0] < 2.3


def test_other_questions_are_refused():
    other = row(scheme="int8") | {"items": list(range(1, 401))}
    with pytest.raises(BadComparison, match="answered other questions"):
        summarise_ptq([[row(), other]], **TEST)
    with pytest.raises(BadComparison, match=r"c2c\.points\.strata"):
        summarise_ptq([[row(stratum="else")]], **TEST)


def test_strata_are_pooled_where_all_is_asked():
    runs = [row(), row(stratum="other", accuracy=0.1)]
    found = {r["stratum"]: r for r in summarise_ptq([runs], **TEST)}
    assert found["all"]["questions"] == 800
    assert found["all"]["accuracy"] == pytest.approx(
        np.mean(answers(0.9, seed=1) + answers(0.1, seed=1))
    )


def test_back_at_equal_bytes_is_a_mixture_of_its_neighbours():
    backs = [
        row("selection", size, acc, scheme="int8", mode="back", proportion=p)
        for size, acc, p in ((20.0, 0.2, 0.2), (40.0, 0.6, 0.4))
    ]
    made = Comparison([[row("selection"), *backs]], ["asked"], 0, 200)
    ladder = [of["asked"] for (_, name), of in made.points.items() if "back" in name]
    middle = at_equal_bytes(ladder, 30.0)
    assert np.allclose(middle, (ladder[0].correct + ladder[1].correct) / 2)
    assert np.array_equal(at_equal_bytes(ladder, 20.0), ladder[0].correct)
    assert at_equal_bytes(ladder, 19.0) is None
    assert at_equal_bytes(ladder, 41.0) is None


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.8, "better"), (0.1, "worse"), (0.4, "no difference")]
)
def test_a_selector_against_back(accuracy, said):
    def of(mode, size, accuracy, share):
        return row("selection", size, accuracy, scheme="int8", mode=mode, proportion=share)

    runs = [row("selection"), row("selection", 60, 0.85, scheme="int8")]
    runs += [
        of("back", 20, 0.2, 0.25),
        of("back", 40, 0.6, 0.5),
        of("knorm_topk", 30, accuracy, 0.4),
    ]
    found = {
        r["point"]: r
        for r in summarise_selection([runs], oracles=[], **TEST)
        if r["stratum"] == "asked"
    }
    assert found["int8-token-knorm_topk-0.4"]["verdict"] == said
    assert found["int8-token-back-0.5"]["verdict"] is None


def test_bytes_of_another_shape_are_an_error():
    """The earlier programme's figures were 4.67 times too high."""
    made = Comparison([[row()]], ["asked"], 0, 100).rows(None, 0.02)[0]
    check_drift(made, 0.15)
    check_drift(made | {"measured_bytes": 30.0, "header_bytes": 25.0, "estimated_bytes": 5.0}, 0.15)
    with pytest.raises(ByteDrift, match="estimated were 444"):
        check_drift(made | {"estimated_bytes": 443.65}, 0.15)


def test_the_front():
    rows = [
        {"measured_bytes": size, "accuracy": acc, "oracle": oracle, "schedule": schedule}
        for size, acc, oracle, schedule in (
            (10, 0.2, False, ""),
            (20, 0.1, False, "last1"),
            (15, 0.9, True, ""),
            (16, 0.5, False, "random0@0.5"),
            (30, 0.5, False, "optimum@0.5"),
        )
    ]
    mark_front(rows)
    assert [one["front"] for one in rows] == [True, False, False, False, True]


def test_decisions_follow_from_the_tables():
    ptq = [
        row(),
        row(scheme="int4", size=26, accuracy=0.5),
        row(scheme="nf4", size=26, accuracy=0.8),
    ]
    selection = [
        row("selection"),
        row("selection", 50, 0.89, scheme="int8"),
        row("selection", 26, 0.2, scheme="int8", mode="back", proportion=0.5),
        row("selection", 13, 0.1, scheme="int8", mode="back", proportion=0.25),
        row("selection", 20, 0.7, scheme="int8", mode="knorm_topk", proportion=0.4),
        row("selection", 3, 0.9, scheme="int2", mode="knorm_topk", proportion=0.1),
    ]
    runs = [ptq, selection]
    budget = summarise_budget(runs, oracles=[], **TEST)
    chosen = summarise_selection([selection], oracles=[], **TEST)
    development = [[row("layers", accuracy=0.85) | {"split": "development"}]]
    found = {r["decision"]: r for r in decide_channel(budget, chosen, runs, development, **TEST)}
    assert found["NF4 is at least INT4"]["verdict"] == "better"
    assert not found["INT8 with a shorter cache beats INT4 at equal bytes"]["holds"]
    small = found["non-inferior to FP16 within its margin at 1/32 of its bytes or fewer"]
    assert small["holds"]
    assert small["point"] == "int2-token-knorm_topk-0.1"
    beats = found["a selector that a sender can compute beats back at equal bytes"]
    assert beats["holds"]
    assert beats["point"] == "int8-token-knorm_topk-0.4"
    assert found["a point has the same answers in every study (all tokens sent is C-M1)"]["holds"]
    other = [row("selection", accuracy=0.3), *selection[1:]]
    budget = summarise_budget([ptq, other], oracles=[], **TEST)
    again = {
        r["decision"]: r for r in decide_channel(budget, chosen, [ptq, other], development, **TEST)
    }
    assert not again["a point has the same answers in every study (all tokens sent is C-M1)"][
        "holds"
    ]


@pytest.mark.parametrize(
    ("accuracy", "holds", "said"),
    [(0.75, False, "too hard"), (0.86, True, "as hard"), (0.94, False, "too easy")],
)
def test_the_world_is_as_hard_as_it_was_meant_to_be(accuracy, holds, said):
    development = [row("layers", accuracy=accuracy, world=world) for world in (1, 2)]
    selection = [row("selection", accuracy=0.1), row("selection", scheme="int8")]
    budget = summarise_budget([selection], oracles=[], **TEST)
    chosen = summarise_selection([selection], oracles=[], **TEST)
    found = decide_channel(budget, chosen, [selection], [development], **TEST)[-1]
    assert found["decision"] == "FP16 answers 80 to 90 % of asked questions"
    assert (found["holds"], found["verdict"].partition(":")[0][: len(said)]) == (holds, said)
    assert found["low"] < found["value"] < found["high"]
    assert (found["questions"], found["seeds"]) == (800, 2)


SETTINGS = {
    "wide": RAW,
    "narrow": "int8",
    "schemes": ["none", "int8", RAW],
    "last": [1],
    "budgets": [0.5, 0.01],
    "shuffles": 2,
    "schedules": {"mine": {"default": "int8", "overrides": [{"layers": [0], "scheme": RAW}]}},
}
SIZE = {"none": 0, "int8": 50, RAW: 100}


def test_schedules_by_budget():
    """Layer 1 bears nothing: it gets the bytes."""
    losses = {0: {"none": 0.0, "int8": 0.0, RAW: 0.0}, 1: {"none": 9.0, "int8": 1.0, RAW: 0.0}}
    found = planned(SETTINGS, losses, SIZE, {0: [0, 1], 1: [2]}, 3)
    assert found["mine"]["schemes"] == [RAW, "int8", "int8"]
    assert found["last1"]["schemes"] == ["int8", "int8", RAW]
    assert found["optimum@0.5"]["schemes"] == ["none", "none", RAW]
    assert found["backwards@0.5"]["schemes"] == [RAW, RAW, "none"]
    assert found["optimum@last1"]["budget"] == 0.75
    assert found["optimum@last1"]["rival"] == "last1"
    assert found["optimum@0.01"]["schemes"] == ["none"] * 3
    assert {"random0@0.5", "random1@0.5"} <= {*found}
    fewer = {layer: {k: v for k, v in of.items() if k != "none"} for layer, of in losses.items()}
    assert "optimum@0.01" not in planned(SETTINGS, fewer, SIZE, {0: [0, 1], 1: [2]}, 3)


def test_what_reads_no_layer_gets_none():
    assert spread({2: "int4"}, {2: [1, 3]}, 4) == ["none", "int4", "none", "int4"]


def test_layer_tables():
    def only(scheme, loss):
        schemes = f"fp16,{scheme}"
        made = row("layers", scheme="int8", schedule=f"only4-{scheme}", schemes=schemes)
        return made | {"split": "development", "nll": [loss] * 400}

    found = summarise_sensitivity(
        [[row("layers") | {"split": "development"}, only("int4", 0.3)]],
        stratum="asked",
        seed=0,
        resamples=100,
    )
    assert (found[0]["layer"], found[0]["targets"], found[0]["scheme"]) == (4, "1", "int4")
    assert found[0]["loss"] == pytest.approx(0.2)
    schedules = [
        {"world": 1, "schedule": name, "kind": kind, "rival": rival}
        for name, kind, rival in (("last1", "last", None), ("optimum@last1", "optimum", "last1"))
    ]
    runs = [
        row("layers"),
        row("layers", 60, 0.5, scheme="int8", schedule="last1", schemes="int8,fp16"),
        row("layers", 60, 0.8, scheme="int8", schedule="optimum@last1", schemes="fp16,int8"),
    ]
    by_point = {
        r["schedule"]: r
        for r in summarise_layers([runs], [schedules], **TEST)
        if r["stratum"] == "asked"
    }
    best = by_point["optimum@last1"]
    assert (best["rival"], best["kind"]) == ("last1", "optimum")
    assert best["over_rival"] == pytest.approx(best["accuracy"] - by_point["last1"]["accuracy"])
    assert best["over_rival_low"] > 0
    assert by_point[""]["kind"] is None


def test_histograms_count_every_scale():
    import torch

    found = histogram(torch.tensor([0.0, 0.3, 0.26, 1.0, 7.9]))
    assert found["edges"] == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert found["counts"] == [3, 0, 1, 0, 1]
    assert (found["scale_min"], found["scale_max"]) == (0.0, pytest.approx(7.9))
