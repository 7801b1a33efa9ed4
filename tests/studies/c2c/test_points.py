"""Points measured on a small pair: what is sent, what it takes, what is answered."""

import pytest
import torch

from ember.c2c import points
from ember.c2c.channel import channel_of, receive
from ember.c2c.evaluate import context_of, evaluate, share_items
from ember.c2c.fuse import fuse
from ember.c2c.source import Sent
from ember.c2c.wire import pack, unpack
from ember.studies.c2c.models.questions import world_items
from ember.studies.c2c.points import Bench, measure_point
from tests.c2c import small

ITEMS = world_items(small.WORLD, 1, "test", 8, 3)
ABOUT = {"device": "cpu", "dtype": "float32", "model": "small"}
ABOUT |= {"weights": "random", "evidence": "measured"}


def bench(items=ITEMS, **options) -> Bench:
    pair = small.pair(**options)
    about = ABOUT | {"family": "ptq", "world": 1, "split": "test", "limited": False}
    with torch.inference_mode():
        sources = list(share_items(pair, items, batch_size=9))
    return Bench(pair, items, sources, 9, about, "key")


def answered(rows) -> dict[str, list]:
    return {row["stratum"]: [*zip(row["items"], row["nll"], strict=True)] for row in rows}


POINTS = [
    points.point(),
    points.point(scheme="int4", axis="channel", mode="knorm_topk", proportion=0.5),
    points.point(scheme="int8", mode="back", proportion=0.3),
    points.point(scheme="nvfp4", mode="random", proportion=0.5, scope="instruction_only"),
    points.point(scheme="int8", schedule="x", schemes="none,none,int2,fp16"),
]


@pytest.mark.parametrize("point", POINTS, ids=[one["point"] for one in POINTS])
@pytest.mark.parametrize("ragged", [False, True])
def test_through_the_wire_or_simulated(point, ragged):
    """Item by item through packed blobs: the same answers and the bytes that the table tells."""
    items = small.ragged_items(12) if ragged else ITEMS
    made = bench(items, smear=not ragged)
    channel, sizes = channel_of(point, made.pair.fuser), []

    def over_the_wire(source, context):
        blobs = [pack(payload) for payload in channel.send(source, context)]
        sizes.append([len(blob) for blob in blobs])
        tokens = source.tokens.shape[1]
        return Sent(receive([unpack(blob) for blob in blobs], tokens), sizes[-1])

    alone = evaluate(made.pair, items, transmit=over_the_wire, batch_size=1)
    found = measure_point(made, point)
    by_item = {row["item"]: row for row in alone}
    for row in found:
        mine = [by_item[item] for item in row["items"]]
        assert row["correct"] == [int(one["correct"]) for one in mine]
        assert row["measured_bytes"] == pytest.approx(sum(o["bytes"] for o in mine) / len(mine))
        content = row["measured_bytes"] - row["header_bytes"]
        assert row["estimated_bytes"] == pytest.approx(content)
        assert 0 <= row["header_bytes"] < 80


def test_all_tokens_sent_are_the_plain_point_exactly():
    made = bench()
    plain = answered(measure_point(made, points.point(scheme="int4")))
    for mode in ("front", "knorm_topk", "proj_vnorm_own_topk"):
        point = points.point(scheme="int4") | {"mode": mode, "proportion": 1.0}
        assert answered(measure_point(made, point)) == plain


def test_sparse_fusion_projects_what_was_sent_and_answers_the_same():
    made = bench()
    point = points.point(scheme="int8", mode="back", proportion=0.25)
    sparse, dense = (
        answered(measure_point(made, point | {"sparse_fuse": on})) for on in (True, False)
    )
    for stratum, found in sparse.items():
        assert [x for _, x in found] == pytest.approx([x for _, x in dense[stratum]], abs=1e-5)
    source, context = made.sources[0], context_of(made.pair, made.passages())
    channel, seen = channel_of(point, made.pair.fuser), []
    for layer in made.pair.fuser:
        layer.key.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape[:-2]))
    with torch.inference_mode():
        sent = channel.transmit(source, context).source
        fuse(made.pair.fuser, context.own(), sent, sent.tokens, sparse=True)
    assert {shape.numel() for shape in seen} == {int(sent.tokens.sum())}
    assert int(sent.tokens.sum()) == len(sent.tokens) * (source.tokens.shape[1] // 4)


def test_what_nothing_was_sent_for_keeps_or_loses_the_receivers_own():
    made = bench()
    kept = points.point(scheme="int8", mode="back", proportion=0.25)
    lost = points.point(**{k: kept[k] for k in points.USUAL} | {"scatter_fill": "zeros"})
    source, context = made.sources[0], context_of(made.pair, made.passages())
    with torch.inference_mode():
        sent = [channel_of(one, made.pair.fuser).transmit(source, context) for one in (kept, lost)]
        own = context.own()
        fused = [
            fuse(made.pair.fuser, own, one.source, one.source.tokens, lost=one.lost) for one in sent
        ]
    gone = ~sent[0].source.tokens
    assert sent[0].lost is None
    assert torch.equal(sent[1].lost, gone)
    for ours, keeping, losing in zip(own, *fused, strict=True):
        for place in (0, 1):
            assert torch.equal(keeping[place][gone], ours[place][gone])
            assert losing[place][gone].eq(0).all()
            assert torch.equal(keeping[place][~gone], losing[place][~gone])


def test_layers_that_are_not_sent_leave_the_receivers_own():
    made = bench()
    point = points.point(scheme="int8", schedule="x", schemes="none,none,none,fp16")
    source, context = made.sources[0], context_of(made.pair, made.passages())
    with torch.inference_mode():
        sent = channel_of(point, made.pair.fuser).transmit(source, context).source
        own = context.own()
        fused = fuse(made.pair.fuser, own, sent, sent.tokens)
    assert sent.layers == (2,)
    same = [torch.equal(a[1], b[1]) for a, b in zip(own, fused, strict=True)]
    assert same == [True, True, True, False]


def test_a_quantised_base_changes_answers_and_no_bytes_and_goes_away():
    made = bench()
    plain = measure_point(made, points.point())
    base = measure_point(made, points.point(scheme="int2", quantize_target="base"))
    both = measure_point(made, points.point(scheme="int2", quantize_target="both"))
    source = measure_point(made, points.point(scheme="int2"))
    assert answered(base) != answered(plain)
    assert answered(both) not in (answered(base), answered(source))
    assert base[0]["measured_bytes"] == plain[0]["measured_bytes"] > both[0]["measured_bytes"]
    assert both[0]["measured_bytes"] == source[0]["measured_bytes"]
    assert answered(measure_point(made, points.point())) == answered(plain)


def test_an_oracles_traffic_is_charged():
    made = bench()
    own, plain = (
        measure_point(made, points.point(scheme="int8", mode=mode, proportion=0.5))[0]
        for mode in ("proj_vnorm_own_topk", "proj_vnorm_topk")
    )
    layers, heads, size = 4, 2, 8
    assert own["charged_bytes"] == layers * 2 * heads * size * 2 * own["passage_tokens"]
    assert plain["charged_bytes"] == 0
    assert own["measured_bytes"] == pytest.approx(
        own["charged_bytes"] + plain["measured_bytes"], rel=0.05
    )


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    made = bench()
    some = [points.point(), *(points.point(scheme="int8", axis=a) for a in ("head", "token"))]
    monkeypatch.setattr("ember.studies.c2c.points.SHARD", 2)
    whole = made.measure(some, tmp_path / "a", "code")
    calls = []

    def stops(bench, point):
        calls.append(point["point"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure_point(bench, point)

    monkeypatch.setattr("ember.studies.c2c.points.measure_point", stops)
    with pytest.raises(KeyboardInterrupt):
        made.measure(some, tmp_path / "b", "code")
    again = made.measure(some, tmp_path / "b", "code")
    assert calls == ["fp16", "int8-head", "int8-token", "int8-token"]
    untimed = [
        [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in rows]
        for rows in (whole, again)
    ]
    assert untimed[0] == untimed[1]
    assert not (tmp_path / "b").exists()


def test_schedules_are_planned_and_each_order_is_measured_once(tmp_path, monkeypatch):
    """Sensitivities on the development split; the step's tables fit their schemas."""
    from ember.records.tables import write_table
    from ember.studies.c2c.layers import measure
    from ember.studies.c2c.layers.tables import C2C_SCHEDULES
    from ember.studies.c2c.point_tables import C2C_POINTS

    made, seen = bench(), []

    def counted(self, some, shards, code):
        seen.append([one["point"] for one in some])
        return [row for one in some for row in measure_point(self, one)]

    monkeypatch.setattr(Bench, "of", classmethod(lambda cls, *given: made))
    monkeypatch.setattr(Bench, "measure", counted)
    settings = {
        "axis": "token",
        "wide": "fp16",
        "narrow": "int8",
        "schemes": ["none", "int8", "fp16"],
        "last": [1],
        "budgets": [0.5],
        "shuffles": 2,
        "schedules": {},
    }
    given = dict.fromkeys(("sharer", "receiver", "fuser", "questions", "shards", "runtime"), "")
    given |= {"world_seed": 1, "batch_size": 9, "limit": None, "settings": settings}
    rows, schedules = measure.plan_schedules(**given, stratum="all")
    assert seen[0] == ["fp16", *(f"only{n}-{s}-token" for n in (0, 1, 2) for s in ("none", "int8"))]
    write_table(tmp_path / "runs.parquet", rows, C2C_POINTS, {})
    write_table(tmp_path / "schedules.parquet", schedules, C2C_SCHEDULES, {})
    optimum = next(one for one in schedules if one["schedule"] == "optimum@0.5")
    assert optimum["bytes_share"] <= 0.5
    found = measure.measure_schedules(**given, schedules=schedules)
    orders = {one["schemes"] for one in schedules}
    assert len(seen[1]) == 2 + len(orders)
    assert {row["schedule"] for row in found} == {"", *(one["schedule"] for one in schedules)}
    by_order = {}
    for row in found:
        by_order.setdefault((row["schemes"], row["stratum"]), set()).add(tuple(row["nll"]))
    assert all(len(answers) == 1 for (order, _), answers in by_order.items() if order)
