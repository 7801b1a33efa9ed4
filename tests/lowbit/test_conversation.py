"""A conversation whose KV stays says what a full replay says, and prefills only what is new."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.commands.main import main
from ember.engine.engine import Engine
from ember.engine.requests import BadPrompt
from ember.lowbit.conversation import TEMPLATES, BadConversation, Conversation, Template
from ember.model.checkpoint import save_decoder
from ember.text.tokenizer import Tokenizer, save_tokenizer, train_bpe
from tests.tiny import wild

WORDS = ("Where does the river end?", "And then?", "Who told you so, and why?")


@pytest.fixture(scope="module")
def backend():
    texts = ["the river ends where the sea begins, and nobody told me why"] * 4
    backend = train_bpe(texts, 300)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return backend


@pytest.fixture(scope="module")
def tokenizer(backend):
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def decoder(tokenizer):
    return wild("qwen3", vocab_size=tokenizer.vocab_size, max_positions=512)


PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.mark.parametrize("template", ["plain", "chatml"])
@pytest.mark.parametrize("backend_name", ["eager", None])
def test_every_turn_equals_a_replay_from_nothing(decoder, tokenizer, template, backend_name):
    options = {"capacity": 256, "backend": backend_name}
    kept = Conversation(decoder, tokenizer, template, **options)
    replay = Conversation(decoder, tokenizer, template, kept=False, **options)
    lengths = []
    for text in WORDS:
        before = len(kept.tokens)
        turn, again = kept.say(text, PARAMS), replay.say(text, PARAMS)
        assert turn.answer == again.answer
        assert kept.tokens == replay.tokens
        # Nothing but the user's turn is run: the last token and the template's are there too.
        assert turn.cached_tokens == before
        assert again.cached_tokens == 0
        assert (
            turn.length == before + turn.user_tokens + len(kept.tokens[before:]) - turn.user_tokens
        )
        lengths.append(turn.length)
    assert lengths == sorted(set(lengths))
    alone = Engine(decoder, capacity=256).generate([kept.tokens[: lengths[1]]], PARAMS)
    assert alone[0][0].prompt_tokens == lengths[1]


def test_what_is_kept_is_the_kv_of_the_whole_conversation(decoder, tokenizer):
    conversation = Conversation(decoder, tokenizer, capacity=256)
    conversation.say(WORDS[0], PARAMS)
    found = conversation.engine.prefill_prompt(conversation.tokens)
    assert found.cached_tokens == len(conversation.tokens) - 1
    with torch.inference_mode():
        logits = decoder.logits(decoder(torch.tensor([conversation.tokens])))[0, -1]
    torch.testing.assert_close(found.logits[0], logits, rtol=1e-4, atol=1e-4)


def test_an_answer_that_ends_itself_gets_no_second_end(decoder, tokenizer, monkeypatch):
    ended = Template("{text}", "<|endoftext|>\n", ("<|endoftext|>",))
    monkeypatch.setitem(TEMPLATES, "ended", ended)
    silent = wild("qwen3", vocab_size=tokenizer.vocab_size, max_positions=512)
    with torch.no_grad():  # equal logits: the first token, which is <|endoftext|>
        silent.lm_head.weight.zero_()
    conversation = Conversation(silent, tokenizer, "ended", capacity=256)
    turn = conversation.say(WORDS[0], PARAMS)
    assert turn.answer == (0,)
    assert conversation.tokens == tokenizer.encode(WORDS[0] + "<|endoftext|>\n")


def test_unknown_templates_and_too_long_conversations_are_refused(decoder, tokenizer):
    with pytest.raises(BadConversation, match="chatml"):
        Conversation(decoder, tokenizer, "chatmk", capacity=64)
    plain = Tokenizer(train_bpe(["a text without chat tokens"], 280))
    with pytest.raises(BadConversation, match="no token of this model's tokenizer"):
        Conversation(decoder, plain, "chatml", capacity=64)
    conversation = Conversation(decoder, tokenizer, capacity=64)
    conversation.say(WORDS[2], PARAMS)
    with pytest.raises(BadPrompt, match="capacity of 64"):
        conversation.say(WORDS[2], PARAMS)


def test_the_command_shows_lengths_that_grow(decoder, backend, tmp_path, capsys):
    save_decoder(decoder, tmp_path / "model", extra_files=save_tokenizer(backend, tmp_path))
    given = ["converse", str(tmp_path / "model"), "--prompt", WORDS[0], "--turns", "2"]
    assert main([*given, "--max-tokens", "4", "--log-tokens"]) == 0
    kept = capsys.readouterr().out
    assert main([*given, "--max-tokens", "4", "--log-tokens", "--replay"]) == 0
    replayed = capsys.readouterr().out
    tokens = [line for line in kept.splitlines() if "tokens: [" in line]
    assert tokens == [line for line in replayed.splitlines() if "tokens: [" in line]
    assert len(tokens) == 2
    assert " 0 reused" in replayed.split("turn 2")[1]
    assert " 0 reused" not in kept.split("turn 2")[1]
