"""Evaluation: batches, modes, shards, and the traps that earlier work fell into."""

from dataclasses import replace

import pytest
import torch

from ember.c2c.evaluate import BadEvaluation, Item, evaluate, in_shards, share_items
from ember.c2c.source import Sent, send_float16
from ember.measure.clock import PhaseClock
from ember.studies.c2c.models.questions import world_items
from tests.c2c import small

ITEMS = world_items(small.WORLD, 1, "test", 8, 3)


def answers(rows) -> list[tuple]:
    return [(row["item"], row["answer"], row["bytes"]) for row in rows]


def confidences(rows) -> list[float]:
    return [row["confidence"] for row in rows]


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("source", ["own", "shuffled", "zero", "none"])
def test_batches_answer_as_their_items_alone(source, rotated):
    """On prompts of several lengths and sections."""
    pair, items = small.pair(smear=False, rotated=rotated), small.ragged_items()
    alone = evaluate(pair, items, source=source, batch_size=1)
    assert len(alone) >= 20
    for size in (5, 24):
        batch = evaluate(pair, items, source=source, batch_size=size)
        assert answers(batch) == answers(alone)
        assert confidences(batch) == pytest.approx(confidences(alone), abs=1e-5)


def test_items_that_share_a_passage_answer_as_if_they_did_not():
    pair = small.pair()
    shared, apart = (evaluate(pair, ITEMS, share_prefix=on) for on in (True, False))
    assert answers(shared) == answers(apart)
    assert confidences(shared) == pytest.approx(confidences(apart), abs=1e-6)
    seen = []

    def transmit(source, context):
        seen.append(len(source.tokens))
        return send_float16(source, context)

    evaluate(pair, ITEMS, transmit=transmit, batch_size=len(ITEMS))
    assert seen == [8]


def test_the_sequential_mode_is_the_simultaneous_one():
    pair = small.pair()
    together = evaluate(pair, ITEMS, batch_size=7)
    found = evaluate(pair, ITEMS, batch_size=7, sequential=True)
    assert found == together
    assert pair.sharer is None


@pytest.mark.parametrize("source", ["zero", "shuffled", "none"])
def test_answers_depend_on_the_source(source):
    """A baseline that never reads its source would give the same answers."""
    pair = small.pair()
    own, other = evaluate(pair, ITEMS), evaluate(pair, ITEMS, source=source)
    assert max(abs(a - b) for a, b in zip(*map(confidences, (own, other)), strict=True)) > 1e-3


def test_a_closed_fuser_is_the_receiver_alone_and_sends_nothing():
    pair = small.pair(opened=False)
    fused, alone = evaluate(pair, ITEMS), evaluate(pair, ITEMS, source="none")
    assert fused == alone
    assert {row["bytes"] for row in fused} == {0}


def test_layers_that_no_open_gate_uses_are_not_sent():
    pair = small.pair()
    for number in (0, 1, 2):  # of four receiver layers; they read the sharer's 0, 0, 1
        pair.fuser[number].key.gate.data.fill_(-1)
        pair.fuser[number].value.gate.data.fill_(-1)
    (source,) = share_items(pair, ITEMS[:2])
    assert source.layers == (2,)
    tokens = small.WORLD.passage_tokens
    assert {row["bytes"] for row in evaluate(pair, ITEMS)} == {tokens * 2 * 2 * 1 * 8}


def test_a_selection_of_no_token_is_the_receiver_alone():
    """There is no least number of tokens that a channel sends unasked (`min_tokens`)."""
    pair = small.pair()

    def nothing(source, context):
        empty = replace(source, tokens=torch.zeros_like(source.tokens))
        return Sent(empty, [0] * len(source.tokens))

    assert evaluate(pair, ITEMS, transmit=nothing) == evaluate(pair, ITEMS, source="none")


def test_a_selector_may_look_at_the_receivers_own_cache_only_by_asking():
    pair, items = small.pair(smear=False), small.ragged_items(4)
    seen = []

    def look(source, context):
        seen.append((source, context.instruction, context.own()))
        return send_float16(source, context)

    evaluate(pair, items, transmit=look)
    ((source, instruction, own),) = seen
    assert instruction.shape == source.tokens.shape == own[0][0].shape[:2]
    assert not (source.tokens & ~instruction).any()
    assert len(own) == pair.receiver.arch.num_layers


def test_continuations_are_greedy_and_equal_in_batches():
    pair, items = small.pair(smear=False), small.ragged_items(20)
    batch = evaluate(pair, items, new_tokens=5)
    alone = evaluate(pair, items, new_tokens=5, batch_size=1)
    assert [row["tokens"] for row in batch] == [row["tokens"] for row in alone]
    assert {len(row["tokens"]) for row in batch} == {5}
    smeared, items = small.pair(), ITEMS[:4]
    rows = evaluate(smeared, items, source="none", new_tokens=3)
    for row, item in zip(rows, items, strict=True):
        tokens = list(sum(item.sections, ()))
        for token in row["tokens"]:
            hidden = smeared.receiver(torch.tensor([tokens]))
            assert token == smeared.receiver.decoder.logits(hidden)[0, -1].argmax()
            tokens.append(token)


def test_stages_are_timed_apart():
    clock = PhaseClock()
    evaluate(small.pair(), ITEMS, clock=clock)
    assert {*clock.times_ms()} == {
        *("sharer_prefill", "transmit", "receiver_prefill", "fuse", "answer")
    }


def test_shards_resume_and_forget_those_of_another_key(tmp_path):
    pair, measured = small.pair(), []

    def measure(items):
        measured.append(len(items))
        return evaluate(pair, items)

    whole, rows = evaluate(pair, ITEMS), in_shards(ITEMS, 9, tmp_path, "a", measure)
    assert answers(rows) == answers(whole)
    assert confidences(rows) == pytest.approx(confidences(whole), abs=1e-6)
    (tmp_path / "1.json").unlink()
    assert in_shards(ITEMS, 9, tmp_path, "a", measure) == rows
    assert measured == [9, 9, 6, 9]
    in_shards(ITEMS, 9, tmp_path, "b", measure)
    assert measured == [9, 9, 6, 9, 9, 9, 6]


def test_bad_items_and_sources():
    item = ITEMS[0]
    with pytest.raises(BadEvaluation, match="last section"):
        replace(item, fused=(True, True))
    with pytest.raises(BadEvaluation, match="last section"):
        replace(item, sections=item.sections[:1])
    with pytest.raises(BadEvaluation, match="stand before its last section"):
        replace(item, index=item.index[1:])
    with pytest.raises(BadEvaluation, match="beyond the sharer's text"):
        replace(item, sharer=item.sharer[:3])
    with pytest.raises(BadEvaluation, match="source 'noise'"):
        evaluate(small.pair(), ITEMS, source="noise")
    with pytest.raises(BadEvaluation, match="cannot be shuffled"):
        evaluate(small.pair(), ITEMS[:3], source="shuffled")
    with pytest.raises(BadEvaluation, match="no padded batches"):
        evaluate(small.pair(), small.ragged_items(3))
    assert isinstance(item, Item)
