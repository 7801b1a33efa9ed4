"""The tokenizer: any text comes back, Transformers gives the same ids, training is repeatable."""

import json
import os
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

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
    with pytest.raises(BadTokenizer, match="is missing"):
        load_tokenizer(tmp_path)
    whole = (directory / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(BadTokenizer, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def foreign_tokenizer(folder, *, template: bool, config: dict):
    """A small tokenizer with a BOS token, as a model of another maker has it."""
    backend = train_bpe(TEXTS, 300)
    backend.add_special_tokens(["<|begin|>", "<|eot|>"])
    begin = backend.token_to_id("<|begin|>")
    if template:
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin|> $A",
                    pair="<|begin|> $A $B",
                    special_tokens=[("<|begin|>", begin)],
                ),
            ]
        )
    content = json.loads(backend.to_str().replace(END_OF_TEXT, "<|other|>"))
    content["truncation"] = {"max_length": 5, "strategy": "LongestFirst", "stride": 0} | {
        "direction": "Right"
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return begin


@pytest.mark.parametrize("added", [None, True, False])
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer"]
)
def test_prompts_begin_as_with_the_models_own_tokenizer(tmp_path, name, template, added):
    from transformers import AutoTokenizer

    config = {"tokenizer_class": name, "bos_token": "<|begin|>", "eos_token": "<|eot|>"}
    config |= {} if added is None else {"add_bos_token": added}
    begin = foreign_tokenizer(tmp_path, template=template, config=config)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the quick brown fox", "", "self.quick fox the quick fox<|eot|>"):
        tokens = ours.encode_prompt(text)
        assert tokens == theirs(text)["input_ids"]
        assert (tokens[:1] == [begin]) == template
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_id == theirs.eos_token_id


def test_a_tokenizer_as_gemma_has_it_loads(tmp_path):
    from transformers import AutoTokenizer

    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS[:3], "fox", "déjà vu 🦊"):
        assert ours.encode_prompt(text) == theirs(text)["input_ids"]
        assert ours.encode_prompt(text)[0] == 2
        assert ours.decode(ours.encode(text)) == text
    assert ours.eos_id == theirs.eos_token_id == 1


@pytest.mark.parametrize(
    ("eos", "token"),
    [("<|eot|>", "<|eot|>"), ({"content": "<|eot|>", "special": True}, "<|eot|>"), (None, None)],
)
def test_the_token_that_ends_texts_is_the_one_that_the_config_names(tmp_path, eos, token):
    foreign_tokenizer(tmp_path, template=False, config={"eos_token": eos})
    found = load_tokenizer(tmp_path)
    assert found.eos_id == (None if token is None else found.encode(token)[0])


@pytest.mark.parametrize("eos", [5, ["a"], {"content": 1}, {}])
def test_a_config_of_wrong_types_is_named(tmp_path, eos):
    foreign_tokenizer(tmp_path, template=False, config={"eos_token": eos})
    with pytest.raises(BadTokenizer, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_bytes_of_tokens_are_those_of_a_byte_level_alphabet_only():
    with pytest.raises(BadTokenizer, match="byte-level"):
        _ = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE())).token_bytes


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(BadTokenizer, match="a pipe, a socket or a device"):
        load_tokenizer(tmp_path)
