"""Prompts of real models: one builder for all methods, rendered by each model's own chat template.

Contract. A question becomes one message of a user (`build_message`), zero-shot and without a chain
of thought, that ends "The correct answer is"; a `Chat` renders messages with thinking off and
splits the text into the parts that an alignment tells apart (C-0.4). Tokens are those of the
rendered text and no others: the template writes its own start token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ember.c2c.data import LETTERS, Question
from ember.records.errors import EmberError
from ember.records.foreign import cause_of

ENDING = "The correct answer is"
TEMPLATE = (
    "Answer the following question.\n\n{question}\n\nChoices:\n{choices}\n\n"
    f'Choose the one correct option. Reply only with "{ENDING}" and its letter.\n\n{ENDING}'
)
REQUEST = "Briefly give the background knowledge that helps most with this question:\n\n{question}"
_MARK = "\ue000message\ue000"  # stands for a message; no text has it


class BadChat(EmberError):
    """A tokenizer or chat template that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Rendered:
    """A prompt's text, and where its message stands in it: `text[start:stop]`.

    What stands before it, from `stop` to `turn`, and from `turn` on are the template's: the opening
    of the turn, its close, and the opening of the answer.
    """

    text: str
    start: int
    stop: int
    turn: int


class Chat:
    """A Transformers tokenizer and its chat template."""

    def __init__(self, tokenizer, name: str = "the tokenizer"):
        """`name` stands for it in errors. Raises `BadChat` without a template or offsets."""
        if not getattr(tokenizer, "chat_template", None):
            raise BadChat(
                f"{name} has no chat template.\nChoose an instruction-tuned model, or add one to "
                "its tokenizer_config.json."
            )
        if not tokenizer.is_fast:
            raise BadChat(
                f"{name} has no tokenizer.json, so its tokens cannot be placed in a text.\n"
                "Choose a model with a fast tokenizer."
            )
        self.tokenizer, self.name = tokenizer, name

    def render(self, messages: Sequence[dict], *, answer: bool = True) -> str:
        """Text of messages (`role`, `content`); with `answer` up to where the answer begins."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer, enable_thinking=False
            )
        # A template is a program of strangers: Jinja raises whatever it likes.
        except Exception as error:
            raise BadChat(
                f"the chat template of {self.name} fails: {cause_of(error)}.\n"
                "Choose another model, or correct its template."
            ) from None

    def place(self, message: str) -> Rendered:
        """A user's message alone, rendered. Raises `BadChat` if the template changes its text."""
        before, after, turn = self._frame
        text = self.render([_user(message)])
        if text != before + message + after:
            raise BadChat(
                f"the chat template of {self.name} changes the message it is given.\n"
                "Strip blanks around the prompt, or choose another model."
            )
        stop = len(before) + len(message)
        return Rendered(text, len(before), stop, stop + turn)

    @cached_property
    def _frame(self) -> tuple[str, str, int]:
        """Text before and after a message, and how much of the latter closes its turn."""
        before, mark, after = self.render([_user(_MARK)]).partition(_MARK)
        closed = self.render([_user(_MARK)], answer=False).partition(_MARK)[2]
        if not mark or _MARK in after:
            raise BadChat(
                f"the chat template of {self.name} does not show a message once and as it is.\n"
                "Choose another model."
            )
        return before, after, len(closed) if after.startswith(closed) else 0

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of rendered text and the characters (start, stop) each stands for."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], [(int(a), int(b)) for a, b in found["offset_mapping"]]

    def tokens(self, messages: Sequence[dict]) -> list[int]:
        """Token ids of messages, up to where the answer begins."""
        return self.encode(self.render(messages))[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of what a model has written, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    @cached_property
    def choice_tokens(self) -> tuple[int, ...]:
        """First token of " A" … " E", with which a forced choice is scored.

        Raises `BadChat` where two letters begin with one token.
        """
        encoded = [
            self.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]
            for letter in LETTERS
        ]
        # Tokenizers that set a blank apart begin all letters alike: the last token tells them.
        for at in (0, -1):
            found = tuple(ids[at] for ids in encoded if ids)
            if len(set(found)) == len(LETTERS):
                return found
        raise BadChat(
            f"{self.name} does not tell the letters A to E apart by one token.\n"
            "Choose another model: forced choices cannot be scored with this one."
        )


def load_chat(folder: str | Path) -> Chat:
    """The tokenizer of a model directory (or hub id). Raises `BadChat`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # Whatever is wrong with a file: JSON, keys, the Rust library's bare exceptions, the network.
    except Exception as error:
        raise BadChat(
            f"no tokenizer can be read from {folder}: {cause_of(error)}.\n"
            "Give a complete model directory with tokenizer.json and tokenizer_config.json."
        ) from None
    return Chat(tokenizer, str(folder))


def build_message(question: Question, template: str = TEMPLATE) -> str:
    """The user's message for a question: what every method's prompt holds. One without choices is
    asked as it is."""
    if not question.choices:
        return question.text.strip()
    listed = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    # Not str.format: a question may hold braces.
    parts = template.replace("{choices}", listed).partition("{question}")
    return (parts[0] + question.text + parts[2]).strip()


def prompt(message: str) -> list[dict]:
    """Messages of a prompt that nothing came before."""
    return [_user(message)]


def request(question: str) -> list[dict]:
    """Messages that ask the sharer for what it knows: the question without its choices."""
    return [_user(REQUEST.partition("{question}")[0] + question)]


def told(question: str, answer: str, message: str) -> list[dict]:
    """Messages of a receiver that reads what the sharer wrote, before it is asked itself."""
    return [*request(question), {"role": "assistant", "content": answer}, _user(message)]


def _user(content: str) -> dict:
    return {"role": "user", "content": content}
