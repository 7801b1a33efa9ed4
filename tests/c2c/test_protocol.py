"""Prompts, the rule by which an answer is read, and data sets in the two forms they come in."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.c2c import prompt
from ember.c2c.data import BadData, Question, load_questions
from ember.c2c.prompt import BadChat, Chat, build_message, load_chat
from ember.c2c.protocol import answer_letter, graded
from tests.c2c import real

ANSWERS = {
    # a letter, and nothing that matters
    "A": "A",
    " B": "B",
    "C.": "C",
    "(D)": "D",
    "**B**": "B",
    "`C`": "C",
    "$D$": "D",
    '"A"': "A",
    "b": "B",
    "a.": "A",
    "(c) copper": "C",
    "A. iron": "A",
    "A: iron": "A",
    "B) copper\n\nIt conducts.": "B",
    "B copper": "B",
    "D\nThe correct answer is A": "A",  # what it says is the answer counts first
    "A/B": None,
    "A or B": None,
    "A, B and C": None,
    "": None,
    "   \n": None,
    # said to be the answer
    "The correct answer is C": "C",
    "The correct answer is: C.": "C",
    "the answer is (b)": "B",
    "The answer is b.": "B",
    "Answer: D": "D",
    "ANSWER = D": "D",
    "**Answer:** B": "B",
    "The correct answer is **A. iron**": "A",
    "The correct answer is option C, because wood burns.": "C",
    "The correct answer is A/B/C/D.": None,
    "The correct answer is B or C": None,
    "The correct answer is copper": None,
    "The correct answer is a metal": None,  # an article
    "The correct answer is Dog": None,  # not the letter of a word
    "The correct answer would be D": "D",
    "The correct answer is A because iron rusts": "A",
    # articles and words
    "A dog is an animal": None,
    "Because it rusts": None,
    "I do not know": None,
    "Dogs bark.": None,
    "b is for bees": None,
    # meant as a choice somewhere in the text
    "It rusts, so I choose C.": "C",
    "Iron (A) rusts.": "A",
    "Neither A. nor B. fits": None,
    "Vitamin C is in fruit": None,
    "Choose E.": None,  # not among the four
    # thinking
    "<think>\nB? The answer is B.\n</think>\n\nC": "C",
    "<think> The answer is A": None,
    "The correct answer is\nB": "B",
    "日本 B。": None,
}


@pytest.mark.parametrize("text", ANSWERS, ids=ascii)
def test_the_letter_of_an_answer(text):
    assert answer_letter(text) == ANSWERS[text]


def test_five_choices_have_five_letters():
    assert answer_letter("E", 5) == "E"
    assert answer_letter("E") is None
    assert answer_letter("D", 3) is None
    assert answer_letter("A", 0) is None


@given(st.text(max_size=60))
def test_any_text_has_a_letter_or_none(text):
    assert answer_letter(text) in (None, "A", "B", "C", "D")


def test_an_answer_without_a_letter_is_wrong_and_counted():
    assert graded("C", "C") == {"answer": "C", "correct": True, "failed": False}
    assert graded("B", "C") == {"answer": "B", "correct": False, "failed": False}
    assert graded("no idea", "C") == {"answer": None, "correct": False, "failed": True}


QUESTION = Question("q", "What {rusts}? {choices}", ("iron", "wood"), "A")


def test_one_prompt_for_all_methods():
    message = build_message(QUESTION)
    assert message.endswith(prompt.ENDING)
    assert QUESTION.text in message  # braces too
    assert "A. iron\nB. wood" in message
    assert message == message.strip()
    other = build_message(QUESTION, "Q: {question}\n{choices}\nThe correct answer is")
    assert other == "Q: What {rusts}? {choices}\nA. iron\nB. wood\nThe correct answer is"


@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_a_prompt_is_rendered_with_thinking_off_and_tells_its_parts(kind):
    chat = real.chat(kind)
    placed = chat.place("Which metal rusts?")
    assert placed.text[placed.start : placed.stop] == "Which metal rusts?"
    closing, opening = placed.text[placed.stop : placed.turn], placed.text[placed.turn :]
    assert real.SPECIAL[kind][1] in closing
    assert "assistant" in opening
    assert "assistant" not in closing
    assert ("<think>\n\n</think>" in opening) == (kind == "qwen")
    assert chat.tokens(prompt.prompt("Which metal rusts?")) == chat.encode(placed.text)[0]


def test_one_start_token_however_the_tokenizer_is_set():
    chat = real.chat("llama")
    assert chat.tokens(prompt.prompt("Which?")).count(chat.tokenizer.bos_token_id) == 1


def test_text_to_text_shows_the_receiver_what_the_sharer_wrote():
    message = build_message(QUESTION)
    asked, told = prompt.request(QUESTION.text), prompt.told(QUESTION.text, "Iron rusts.", message)
    assert [m["role"] for m in told] == ["user", "assistant", "user"]
    assert told[0] == asked[0]
    assert "iron" not in asked[0]["content"]
    text = real.chat("qwen").render(told)
    assert text.index("Iron rusts.") < text.index(message)


@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_letters_of_a_forced_choice_are_told_apart(kind):
    chat = real.chat(kind)
    assert len(set(chat.choice_tokens)) == 5
    for letter, token in zip("ABCDE", chat.choice_tokens, strict=True):
        assert chat.decode([token]).strip() in (letter, "")


def test_templates_and_tokenizers_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(BadChat, match="no chat template"):
        real.chat("qwen", chat_template=None)
    shouting = real.chat("qwen", chat_template="{{ messages[0].content | upper }}")
    with pytest.raises(BadChat, match="does not show a message once"):
        shouting.place("Which?")
    twice = "{{ messages[0].content }} {{ messages[0].content }}"
    with pytest.raises(BadChat, match="does not show a message once"):
        real.chat("qwen", chat_template=twice).place("Which?")
    with pytest.raises(BadChat, match="changes the message"):
        real.chat("llama").place("Which? ")  # that template strips blanks
    with pytest.raises(BadChat, match="template of llama fails"):
        real.chat("llama", chat_template="{{ raise_exception('no') }}").place("Which?")
    with pytest.raises(BadChat, match="no tokenizer can be read"):
        load_chat(tmp_path)
    real.fast("llama").save_pretrained(tmp_path)
    assert isinstance(load_chat(tmp_path), Chat)


# --- data sets ---


@pytest.mark.parametrize("form", ["hub", "first"])
def test_questions_in_either_form(tmp_path, form):
    path = real.openbookqa(tmp_path / "obqa.jsonl", 9, form)
    found = load_questions(str(path), expected=9)
    assert [q.name for q in found] == [f"q-{n}" for n in range(9)]
    assert found[1].choices == ("copper 1", "wood 1", "glass 1", "rain 1")
    assert found[1].key == "B"
    assert load_questions(str(path), limit=2) == found[:2]


def test_parquet_is_read_as_jsonl_is(tmp_path):
    path = real.openbookqa(tmp_path / "obqa.jsonl", 5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "obqa.parquet")
    assert load_questions(str(tmp_path / "obqa.parquet")) == load_questions(str(path))


def arc(key, labels, name="Mercury_1"):
    texts = [f"choice {n}" for n in range(len(labels))]
    choices = {"text": texts, "label": list(labels)}
    return {"id": name, "question": "Which?", "choices": choices, "answerKey": key}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_arc_leaves_out_keys_that_are_no_letter_from_a_to_d(tmp_path):
    rows = [
        arc("B", "ABCD", "one"),
        arc("3", "1234", "two"),
        arc("C", "ABC", "three"),
        arc("E", "ABCDE", "four"),
        arc("A", "ABCDE", "five"),
    ]
    found = load_questions(written(tmp_path / "arc.jsonl", rows))
    assert [(q.name, q.key, len(q.choices)) for q in found] == [
        ("one", "B", 4),
        ("three", "C", 3),
        ("five", "A", 5),
    ]
    with pytest.raises(BadData, match=r"3 questions .* and 5 are expected"):
        load_questions(str(tmp_path / "arc.jsonl"), expected=5)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "q", "question": "Which?", "answerKey": "A"}, "for choices"),
        (arc("D", "ABC"), "key D and 3 choices"),
        (arc("A", "ABDC"), "labels its 4 choices"),
        (arc("A", "A"), "for choices"),
        (arc(None, "ABCD"), "no answerKey"),
        (arc("A", "ABCD") | {"question": " "}, "no question"),
        (arc("A", "ABCD") | {"question": 3}, "no question"),
        (arc("A", "ABCD", None), "no id"),
        (arc("A", "ABCD") | {"choices": {"text": [1, 2], "label": ["A", "B"]}}, "for choices"),
        (arc("A", "ABCD") | {"choices": "A B"}, "for choices"),
        (arc("1", "1234"), "no question with a key from A to D"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, row, said):
    with pytest.raises(BadData, match=said):
        load_questions(written(tmp_path / "odd.jsonl", [row]))


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = real.openbookqa(tmp_path / "whole.jsonl", 6).read_text()
    (tmp_path / "cut.jsonl").write_text(whole[:-40])
    with pytest.raises(BadData, match=r"cut\.jsonl cannot be read"):
        load_questions(str(tmp_path / "cut.jsonl"))
    rows = [json.loads(line) for line in whole.splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-9])
    with pytest.raises(BadData, match=r"cut\.parquet cannot be read"):
        load_questions(str(tmp_path / "cut.parquet"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadData, match=r"empty\.jsonl"):
        load_questions(str(tmp_path / "empty.jsonl"))
    (tmp_path / "questions.csv").write_text("a,b\n")
    with pytest.raises(BadData, match=r"neither \.parquet nor \.jsonl"):
        load_questions(str(tmp_path / "questions.csv"))
    with pytest.raises(BadData, match="twice"):
        load_questions(written(tmp_path / "twice.jsonl", [arc("A", "ABCD"), arc("B", "ABCD")]))


def test_a_data_set_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(BadData, match="no/such cannot be read"):
        load_questions("no/such")
