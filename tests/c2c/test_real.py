"""A whole pair of real models in small: Hugging Face directories of two families with their own
tokenizers, a published fuser, and questions in the published form, through every method."""

import pytest
import torch

from ember.c2c import real as methods
from ember.c2c.align import BadAlignment
from ember.c2c.data import load_questions
from ember.c2c.fuser import BadFuser, FuserShape
from ember.c2c.prompt import ENDING, build_message, load_chat, prompt, request
from ember.c2c.real import METHODS, Budget, answers, load_real
from ember.measure.clock import PhaseClock
from ember.model.folder import read_architecture
from tests.c2c import real

SMALL = Budget(new_tokens=6, message_tokens=8, batch_size=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    receiver = real.model(place / "receiver", "qwen", "qwen3", seed=1, num_layers=4)
    sharer = real.model(place / "sharer", "llama", "llama", seed=2, num_kv_heads=1)
    shape = FuserShape.of(read_architecture(sharer), read_architecture(receiver), 16)
    fuser = real.published(place / "fuser", shape, (0, 0, 1, 2))
    questions = load_questions(str(real.openbookqa(place / "obqa.jsonl", 24)), expected=24)
    return sharer, receiver, fuser, questions


@pytest.fixture(scope="module")
def loaded(folders):
    return load_real(*folders[:3])


def test_methods_run_and_batches_answer_as_single_prompts_do(folders, loaded):
    questions = folders[3]
    alone = Budget(SMALL.new_tokens, SMALL.message_tokens, 1)
    for method in METHODS:
        rows = answers(*loaded, method, questions, budget=SMALL)
        assert [row["item"] for row in rows] == [q.name for q in questions]
        single = answers(*loaded, method, questions, budget=alone)
        for one, other in zip(rows, single, strict=True):
            assert one.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-4)
            assert one == other
        assert all(row["forced"] in "ABCD" for row in rows)
        assert all(row["output_tokens"] <= 6 for row in rows)
        assert any(row["bytes"] for row in rows) == (method not in ("receiver", "sharer"))


def test_methods_are_different_ones(folders, loaded):
    """A baseline that never reads its source, or C2C that never opens, answers like another."""
    questions = folders[3]
    texts = {
        method: [row["text"] for row in answers(*loaded, method, questions, budget=SMALL)]
        for method in METHODS
    }
    for method in METHODS:
        for other in METHODS[: METHODS.index(method)]:
            assert texts[method] != texts[other], (method, other)


def test_a_closed_fuser_is_exactly_the_receiver(folders, loaded):
    pair, chats = loaded
    questions = folders[3][:6]
    sharer, receiver, fuser, _ = folders
    closed, _ = load_real(sharer, receiver, fuser)
    with torch.no_grad():
        for layer in closed.fuser:
            layer.key.gate.fill_(-1)
            layer.value.gate.fill_(-1)
    one = answers(closed, chats, "c2c", questions, budget=SMALL)
    other = answers(pair, chats, "receiver", questions, budget=SMALL)
    for mine, wanted in zip(one, other, strict=True):
        assert mine.pop("confidence") == pytest.approx(wanted.pop("confidence"), abs=1e-5)
        assert mine == wanted  # nothing is sent, either: no gate reads it


@torch.inference_mode()
def test_a_model_alone_writes_what_transformers_writes(folders, loaded):
    from transformers import AutoModelForCausalLM

    question = folders[3][3]
    for method, folder in (("receiver", folders[1]), ("sharer", folders[0])):
        chat, model = load_chat(folder), AutoModelForCausalLM.from_pretrained(folder)
        tokens = torch.tensor([chat.tokens(prompt(build_message(question)))])
        made = model.generate(tokens, max_new_tokens=6, do_sample=False)[0, tokens.shape[1] :]
        (row,) = answers(*loaded, method, [question], budget=SMALL)
        assert row["text"] == chat.decode(made.tolist())
        ending = chat.encode(ENDING)[0]
        logits = model(torch.cat([tokens, torch.tensor([ending])], 1)).logits[0, -1]
        scores = logits[list(chat.choice_tokens[:4])]
        assert row["forced"] == "ABCD"[int(scores.argmax())]
        assert row["confidence"] == pytest.approx(scores.softmax(0).max().item(), abs=1e-4)


def test_bytes_are_of_the_sharers_shape_and_of_fused_tokens_alone(folders, loaded):
    sharer, _, _, questions = folders
    pair, chats = loaded
    (row,) = answers(pair, chats, "c2c", questions[:1], budget=SMALL)
    arch = read_architecture(sharer)
    message = build_message(questions[0])
    aligned = methods.align("longest", chats.receiver, chats.sharer, message)
    each = 3 * 2 * arch.num_kv_heads * arch.head_dim * 2  # layers that are read, K and V, FP16
    assert row["bytes"] == sum(aligned.fused) * each


def test_text_to_text_reads_what_the_sharer_wrote(folders, loaded):
    pair, chats = loaded
    question = folders[3][0]
    (row,) = answers(pair, chats, "text", [question], budget=SMALL)
    assert row["bytes"] == len(row["message"].encode())
    own = methods.evaluate(
        methods.Pair(None, pair.sharer, None),
        [methods._item(0, question, chats.sharer, chats.sharer.tokens(request(question.text)))],
        source="none",
        new_tokens=8,
    )
    assert row["message"] == chats.sharer.decode(own[0]["tokens"]).strip()


def test_stages_are_timed(folders, loaded):
    clock = PhaseClock()
    answers(*loaded, "c2c", folders[3][:2], budget=SMALL, clock=clock, forced=False)
    stages = {"sharer_prefill", "transmit", "receiver_prefill", "fuse", "answer"}
    assert stages <= {*clock.times_ms()}


def test_alignments_that_a_fuser_has_not_learned_are_refused(folders):
    sharer, receiver, fuser, _ = folders
    with pytest.raises(BadAlignment, match="trained with alignment 'longest'"):
        load_real(sharer, receiver, fuser, alignment="first")
    pair, chats = load_real(sharer, receiver, None, alignment="span_end")
    assert chats.alignment == "span_end"
    with pytest.raises(BadFuser, match="needs a fuser"):
        answers(pair, chats, "c2c", folders[3][:1])


def test_template_tokens_are_fused_by_their_switch(folders):
    sharer, receiver, fuser, questions = folders
    sizes = {}
    for switch in (False, True, None):
        pair, chats = load_real(sharer, receiver, fuser, fuse_template=switch)
        (row,) = answers(pair, chats, "c2c", questions[:1], budget=SMALL, forced=False)
        sizes[switch] = row["bytes"]
    assert sizes[None] == sizes[False] < sizes[True]


def test_ember_c2c_ask_prints_answers_and_bytes(folders, loaded, capsys):
    from ember.c2c.data import Question
    from ember.commands.main import main

    sharer, receiver, fuser, _ = folders
    asked = ["c2c", "ask", str(sharer), str(receiver), "Which metal rusts?", "--max-tokens", "6"]
    assert main([*asked, "--fuser", str(fuser), "--message-tokens", "8"]) == 0
    printed = capsys.readouterr().out
    question = Question("prompt", "Which metal rusts?", (), "")
    for method in ("receiver", "sharer", "text", "c2c"):
        (row,) = answers(*loaded, method, [question], budget=SMALL, forced=False)
        assert f"{method} ({row['bytes']:,} bytes): {row['text'].strip()}" in printed
    assert main([*asked, "--message-tokens", "8"]) == 0
    assert "c2c: skipped" in capsys.readouterr().out
    assert main([*asked, "--fuser", str(fuser), "--alignment", "off"]) == 1
    assert "trained with alignment 'longest'" in capsys.readouterr().err
