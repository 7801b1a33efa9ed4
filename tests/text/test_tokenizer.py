"""The tokenizer: any text comes back, Transformers gives the same ids, training is repeatable."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.text.corpora import pydoc_topics
from ember.text.tokenizer import (
    END_OF_TEXT,
    BadTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)

TEXTS = ["the quick brown fox", "def fox(self):\n    return self.quick\n", "naïve café 北京 🦊"] * 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    texts = [doc.text for doc in pydoc_topics(max_bytes=100_000) if doc.split == "train"]
    save_tokenizer(train_bpe(texts, 600), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(tokens) == text
    assert sum(tokenizer.token_bytes[tokens]) == len(text.encode())
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert tokenizer.eos_id not in tokens


def test_merges_were_learned(tokenizer):
    text = pydoc_topics()[0].text
    assert tokenizer.vocab_size == 600
    assert len(tokenizer.encode(text)) < 0.6 * len(text.encode())


def test_special_token_is_parsed_only_if_asked(tokenizer):
    text = f"one{END_OF_TEXT}two"
    parsed = tokenizer.encode(text)
    assert tokenizer.eos_id in parsed
    assert tokenizer.decode(parsed) == text
    assert tokenizer.decode(parsed, skip_special=True) == "onetwo"
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert tokenizer.token_bytes[tokenizer.eos_id] == 0


def test_transformers_gives_the_same_ids(directory, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    texts = [*TEXTS, f"a{END_OF_TEXT}b", "  two  spaces .  ", "\n\n\tx", "", "can't  Stop"]
    for text in texts:
        ours = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ours
        assert theirs.decode(ours) == tokenizer.decode(ours) == text
    assert len(theirs) == tokenizer.vocab_size
    for token in (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id):
        assert token == tokenizer.eos_id


def test_training_is_the_same_in_another_process():
    here = train_bpe(TEXTS, 300).to_str()
    code = (
        "import json, sys; from ember.text.tokenizer import train_bpe;"
        "print(train_bpe(json.load(sys.stdin), 300).to_str())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(there.stdout) == json.loads(here)


def test_too_little_text_gives_a_smaller_vocabulary():
    assert Tokenizer(train_bpe(["ab"], 1000)).vocab_size == 258


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(BadTokenizer, match="vocab_size 100"):
        train_bpe(TEXTS, 100)


def test_missing_damaged_and_foreign_files_are_named(tmp_path, directory):
    with pytest.raises(BadTokenizer, match="does not exist"):
        load_tokenizer(tmp_path)
    whole = (directory / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(BadTokenizer, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole.replace(END_OF_TEXT, "<|other|>"))
    with pytest.raises(BadTokenizer, match=r"no <\|endoftext\|>"):
        load_tokenizer(tmp_path)
