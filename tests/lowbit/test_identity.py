"""The chat corpus, its files and mixes, the router, and a model that learns from it."""

import random

import pytest
import torch

from ember.lowbit.identity import (
    BASE,
    DIRECT,
    KINDS,
    NEW,
    REPORTED,
    WHO_AM_I,
    WHO_ARE_THEY,
    WHO_ARE_YOU,
    BadMix,
    Chat,
    Dialogue,
    IntentHead,
    Words,
    answer_loss,
    batch,
    dialogues,
    draw,
    read_tsv,
    repeated_share,
    routed,
    write_tsv,
)
from ember.optim.loop import run
from tests.tiny import wild


def test_every_question_is_asked_once_and_probes_are_no_phrasing_of_the_training():
    found = dialogues()
    assert len({one.question for one in found}) == len(found)
    by_kind = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    assert len(by_kind["general"]) >= 200
    for some in by_kind.values():
        assert 5 <= sum(one.probe for one in some) < len(some) / 2
    answers = {one.answer for one in by_kind["identity"]}
    assert answers == {BASE}
    renamed = dialogues(NEW)
    assert {one.answer for one in renamed if one.kind == "identity"} == {NEW}
    assert [one for one in renamed if one.kind != "identity"] == [
        one for one in found if one.kind != "identity"
    ]


def test_near_misses_are_near():
    """Every word of theirs but the user's own is one that questions for the model's name have."""
    asked = {w for one in dialogues() if one.kind == "identity" for w in one.question.split()}
    near = [one for one in dialogues() if one.kind == "near"]
    shared = [len(asked & {*one.question.split()}) / len({*one.question.split()}) for one in near]
    assert min(shared) > 0.3
    assert sum(shared) / len(shared) > 0.7


def test_files_of_dialogues_come_back_and_bad_lines_are_named(tmp_path):
    some = dialogues()[:7]
    write_tsv(tmp_path / "mix.tsv", some)
    again = read_tsv(tmp_path / "mix.tsv")
    assert [(a.kind, a.question, a.answer) for a in again] == [
        (a.kind, a.question, a.answer) for a in some
    ]
    (tmp_path / "bad.tsv").write_text("identity\twho are you\ti am\nfriend\tx\ty\n")
    with pytest.raises(BadMix, match="line 2"):
        read_tsv(tmp_path / "bad.tsv")
    with pytest.raises(BadMix, match=r"none\.tsv"):
        read_tsv(tmp_path / "none.tsv")
    with pytest.raises(BadMix, match="'hullo' is no word"):
        Words().prompt("hullo")


def test_a_mix_draws_by_its_weights():
    by_kind = {kind: [one for one in dialogues() if one.kind == kind] for kind in KINDS}
    drawn = draw({"identity": 1, "general": 3, "near": 0}, by_kind, 4000, random.Random(1))
    share = sum(one.kind == "identity" for one in drawn) / 4000
    assert share == pytest.approx(0.25, abs=0.03)
    assert not any(one.kind == "near" for one in drawn)
    with pytest.raises(BadMix, match="chooses nothing"):
        draw({"identity": 0}, by_kind, 1, random.Random(1))


def test_only_answers_are_learned():
    words, one = Words(), Dialogue("general", "what is two plus two", "four")
    tokens, answers = batch(words, [one, Dialogue("near", "who am i", "you have not")], "cpu")
    assert tokens.shape == (2, 8)
    # Targets of the first: the question's other words, the mark, the answer and the end.
    assert answers[0].tolist() == [False] * 5 + [True, True]
    assert answers[1].tolist() == [False] * 3 + [True] * 4
    assert words.text(words.whole(one)[6:]) == "four"
    decoder = wild("qwen3", vocab_size=len(words.words))
    with torch.no_grad():
        whole = answer_loss(decoder, tokens, answers)
        logits = decoder.logits(decoder(tokens[:, :-1])).log_softmax(-1)
        picked = logits.gather(-1, tokens[:, 1:, None])[..., 0][answers]
    torch.testing.assert_close(whole, -picked.mean())


def test_the_router_tells_most_questions_for_the_name_from_all_others():
    asked = {
        kind: routed([one.question for one in dialogues() if one.probe and one.kind == kind])
        for kind in KINDS
    }
    assert sum(asked["identity"]) / len(asked["identity"]) > 0.6
    assert sum(asked["near"]) / len(asked["near"]) < 0.1
    assert not any(asked["general"])


def test_training_has_every_question_and_every_frame_that_probes_are_made_of():
    known = {one.question for one in dialogues() if not one.probe}
    probes = {one.question for one in dialogues() if one.probe}
    for questions in (WHO_ARE_YOU, WHO_AM_I, WHO_ARE_THEY):
        for forms in questions:
            for form, frames in zip(forms, (DIRECT, REPORTED), strict=True):
                made = {frame.format(form) for frame in frames}
                assert made & known
                assert made & probes
        for form, frames in ((0, DIRECT), (1, REPORTED)):
            for frame in frames:
                assert {frame.format(forms[form]) for forms in questions} & known


def test_an_intent_head_learns_the_known_questions_of_a_model_that_it_leaves_alone():
    decoder = wild("qwen3", vocab_size=len(Words().words))
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    head = IntentHead(decoder, Words())
    some = [one for one in dialogues() if one.kind != "near"]
    told = head([one.question for one in some])
    right = [one.kind == "identity" for one in some]
    assert sum(a == b for a, b in zip(told, right, strict=True)) / len(some) > 0.7
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())


def test_repeats_are_a_share_of_neighbours():
    assert repeated_share([1, 1, 1, 2]) == pytest.approx(2 / 3)
    assert repeated_share([5]) == 0.0


def test_a_chat_model_learns_and_resumes_to_the_same_weights(tmp_path):
    def model():
        return wild("qwen3", vocab_size=len(Words().words), scale=0.1, tie_embeddings=False)

    torch.manual_seed(0)
    whole = model()
    rows = run(Chat(whole, 30, 16, 5e-3, 3), 30, log_every=10)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    parts, state = model(), tmp_path / "state.pt"
    run(Chat(parts, 30, 16, 5e-3, 3), 12, log_every=10, state=state, key="a")
    run(Chat(parts, 30, 16, 5e-3, 3), 30, log_every=10, state=state, key="a")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
