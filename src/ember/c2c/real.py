"""Questions put to a pair of real models, by every method that M0 compares (C-0.4, C-M0).

Methods: `receiver` and `sharer` answer alone; `text`: the sharer writes a message, which the
receiver reads before it is asked; `c2c`; `shuffled` and `zero`: C2C with the KV of another
question, or with zeros. All have the same prompt, greedy decoding and the same rule for the answer
(`ember.c2c.protocol`). A forced choice is scored beside it: after the opening of the answer the
words "The correct answer is" are put, which are never fused, and the likeliest letter counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ember.c2c.align import MODES, NOWHERE, align, check_mode
from ember.c2c.data import LETTERS, Question
from ember.c2c.evaluate import Item, evaluate
from ember.c2c.fuser import BadFuser
from ember.c2c.pair import Pair, load_reader
from ember.c2c.prompt import ENDING, TEMPLATE, Chat, build_message, load_chat, prompt, request, told
from ember.c2c.protocol import graded
from ember.c2c.published import published_alignment, read_published
from ember.c2c.source import Transmit
from ember.measure.clock import PhaseClock
from ember.model.folder import read_architecture

METHODS = ("receiver", "sharer", "text", "c2c", "shuffled", "zero")
FUSED = {"c2c": "own", "shuffled": "shuffled", "zero": "zero"}  # methods with a source, and which
NO_CHOICE = (0,)  # what is scored where a prompt has no choices


@dataclass(frozen=True)
class Chats:
    """How both models of a pair read a prompt, and how their tokens are aligned."""

    sharer: Chat
    receiver: Chat
    alignment: str
    fuse_template: bool


@dataclass(frozen=True)
class Budget:
    """Tokens that may be written, and prompts at once (1 for models with sliding layers)."""

    new_tokens: int = 64
    message_tokens: int = 256
    batch_size: int = 16


def load_real(
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path | None = None,
    *,
    alignment: str | None = None,
    fuse_template: bool | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Pair, Chats]:
    """Two model directories and a published fuser's folder (None: methods without it).

    `alignment`: by default the one that the fuser was trained with; another one is refused.
    `fuse_template`: by default as published, so only with alignment off. Raises `BadFuser`,
    `BadChat`, `BadAlignment` or `BadCheckpoint`.
    """
    chats = [load_chat(folder) for folder in (sharer, receiver)]
    made = None
    if fuser is not None:
        trained = published_alignment(fuser)
        check_mode(trained, alignment or trained)
        alignment = trained
        made = read_published(fuser, *(read_architecture(folder) for folder in (sharer, receiver)))
        made = made.to(device, dtype).requires_grad_(False)
    alignment = alignment or MODES[0]
    fused = alignment == "off" if fuse_template is None else fuse_template
    pair = Pair(load_reader(sharer, device, dtype), load_reader(receiver, device, dtype), made)
    return pair, Chats(*chats, alignment, fused)


def answers(
    pair: Pair,
    chats: Chats,
    method: str,
    questions: Sequence[Question],
    *,
    budget: Budget = Budget(),
    template: str = TEMPLATE,
    transmit: Transmit | None = None,
    sparse: bool = False,
    clock: PhaseClock | None = None,
    forced: bool = True,
) -> list[dict]:
    """One row for each question: its name, the right letter, what was written (`text`,
    `output_tokens`), the letter read from it (`answer`, `correct`, `failed`), the `forced` one with
    its probability (`confidence`), and the `bytes` that crossed between the models.

    `transmit`: the channel of C2C, FP16 by default; `sparse`: it projects only what was sent.
    `clock` times the written answers' stages.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {METHODS}")
    if method in FUSED and pair.fuser is None:
        raise BadFuser(f"{method} needs a fuser, and this pair has none.\nGive a fuser's folder.")
    chat = chats.sharer if method == "sharer" else chats.receiver
    reader = pair.sharer if method == "sharer" else pair.receiver
    alone = Pair(None, reader, None)
    sliding = any(one.arch.sliding_layers for one in (pair.sharer, pair.receiver) if one)
    options = {
        "batch_size": 1 if sliding else budget.batch_size,
        "share_prefix": False,
        "source": FUSED.get(method, "none"),
    }
    messages = [build_message(question, template) for question in questions]
    sent = [0] * len(questions)
    if method in FUSED:
        aligned = [
            align(
                chats.alignment,
                chats.receiver,
                chats.sharer,
                message,
                fuse_template=chats.fuse_template,
            )
            for message in messages
        ]
        made = [(one.receiver, one) for one in aligned]
        alone = pair
        options |= {"transmit": transmit, "sparse": sparse}
    else:
        talks = [prompt(message) for message in messages]
        if method == "text":
            written = _written(pair, chats, questions, budget, options, clock)
            sent = [len(text.encode()) for text in written]
            talks = [
                told(question.text, text, message)
                for question, text, message in zip(questions, written, messages, strict=True)
            ]
        made = [(tuple(chat.tokens(talk)), None) for talk in talks]
    items = [
        _item(n, q, chat, *one) for n, (q, one) in enumerate(zip(questions, made, strict=True))
    ]
    found = evaluate(alone, items, new_tokens=budget.new_tokens, clock=clock, **options)
    rows = [
        {
            "item": question.name,
            "right": question.key,
            "text": (text := chat.decode(row["tokens"])),
            "output_tokens": len(row["tokens"]),
            **graded(text, question.key, len(question.choices)),
            "bytes": row["bytes"] + size,
        }
        for question, row, size in zip(questions, found, sent, strict=True)
    ]
    if method == "text":
        rows = [row | {"message": text} for row, text in zip(rows, written, strict=True)]
    if not forced:
        return rows
    ending = tuple(chat.encode(ENDING)[0])
    items = [
        _item(n, q, chat, *one, ending)
        for n, (q, one) in enumerate(zip(questions, made, strict=True))
    ]
    scored = evaluate(alone, items, **options)
    letters = dict(zip(chat.choice_tokens, LETTERS, strict=True))
    return [
        row
        | {
            "forced": letters[one["answer"]],
            "forced_correct": one["correct"],
            "confidence": one["confidence"],
        }
        for row, one in zip(rows, scored, strict=True)
    ]


def _item(
    number: int, question: Question, chat: Chat, tokens: Sequence[int], aligned=None, ending=()
) -> Item:
    """A prompt whose last token and what follows it (`ending`) are never fused."""
    count = len(question.choices)
    choices = chat.choice_tokens[:count] if count else NO_CHOICE
    right = choices[LETTERS.index(question.key)] if count else NO_CHOICE[0]
    index, instruction = [NOWHERE] * (len(tokens) - 1), [False] * (len(tokens) - 1)
    if aligned is not None:
        instruction = list(aligned.fused[:-1])
        index = [
            place if fused else NOWHERE
            for place, fused in zip(aligned.index[:-1], instruction, strict=True)
        ]
    return Item(
        number,
        number,
        "all",
        tuple(aligned.sharer) if aligned else (),
        (tuple(tokens[:-1]), (*tokens[-1:], *ending)),
        (aligned is not None, False),
        tuple(index),
        tuple(instruction),
        tuple(choices),
        right,
    )


def _written(
    pair: Pair,
    chats: Chats,
    questions: Sequence[Question],
    budget: Budget,
    options: dict,
    clock: PhaseClock | None,
) -> list[str]:
    """What the sharer writes of each question, which it is shown without the choices."""
    items = [
        _item(
            n, Question(q.name, q.text, (), ""), chats.sharer, chats.sharer.tokens(request(q.text))
        )
        for n, q in enumerate(questions)
    ]
    alone = Pair(None, pair.sharer, None)
    rows = evaluate(alone, items, new_tokens=budget.message_tokens, clock=clock, **options)
    return [chats.sharer.decode(row["tokens"]).strip() for row in rows]
