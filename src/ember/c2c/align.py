"""Which sharer token each receiver token gets, between any two tokenizers (C-0.3).

Contract. `align` says what the sharer reads, and for each receiver token the place in that reading
whose KV it is fused with. Modes:

- `off`: the sharer reads the receiver's tokens. Needs one vocabulary.
- `first`, `longest`: the sharer reads one of its own tokens for each receiver token of the message:
  the first, or the longest, of those that the token's text has with it. The rest of its text is
  lost to the sharer (as published).
- `span_end`: the sharer reads the message in its own tokens; a receiver token gets the last of them
  that overlaps its characters, so the KV of a place where the sharer has read as much.

But for `off` the sharer has its own chat template around the message, and template tokens are
mapped by role: those before the message, those that close its turn and those that open the answer
each to their like, counted from the end, where a role has been read whole. Whether they are fused
is `fuse_template`, apart from the mode. A fuser is trained with one mode and refuses others.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ember.c2c.prompt import Chat, Rendered
from ember.records.errors import EmberError
from ember.records.foreign import shown

MODES = ("off", "first", "longest", "span_end")
NOWHERE = -1
_BROKEN = "\ufffd"  # what part of a character decodes to

Spans = Sequence[tuple[int, int]]


class BadAlignment(EmberError):
    """Tokenizers, modes or a fuser that do not go together."""


@dataclass(frozen=True)
class Alignment:
    """A prompt as both models read it."""

    receiver: tuple[int, ...]
    """(T,) the receiver's tokens."""
    sharer: tuple[int, ...]
    """(S,) the sharer's tokens."""
    index: tuple[int, ...]
    """(T,) place in `sharer` that a receiver token gets, or `NOWHERE`."""
    fused: tuple[bool, ...]
    """(T,) tokens to fuse; never one without a place, and never the last."""
    message: tuple[bool, ...]
    """(T,) tokens of the message, not of the template."""


def align(
    mode: str, receiver: Chat, sharer: Chat, message: str, *, fuse_template: bool = False
) -> Alignment:
    """Aligns a user's message, rendered by both chat templates. Raises `BadAlignment`."""
    if mode not in MODES:
        raise BadAlignment(
            f"there is no alignment {shown(mode)}.\nChoose one of: {', '.join(MODES)}."
        )
    placed = receiver.place(message)
    ids, spans = receiver.encode(placed.text)
    roles = roles_of(spans, placed)
    if mode == "off":
        _check_shared(ids, receiver, sharer)
        theirs, index = ids, list(range(len(ids)))
    else:
        own = sharer.place(message)
        theirs, their_spans = sharer.encode(own.text)
        their_roles = roles_of(their_spans, own)
        inside = [place for place, role in enumerate(roles) if role == "message"]
        if mode == "span_end":
            found = span_ends(
                [_shifted(spans[place], placed.start) for place in inside],
                [
                    _shifted(span, own.start)
                    for span, role in zip(their_spans, their_roles, strict=True)
                    if role == "message"
                ],
            )
            first = their_roles.index("message") if "message" in their_roles else 0
            found = [place if place == NOWHERE else first + place for place in found]
        else:
            texts = token_texts(
                receiver, [ids[p] for p in inside], [spans[p] for p in inside], placed
            )
            chosen = choose_tokens(mode, sharer, texts)
            theirs, their_roles, found = _replaced(theirs, their_roles, chosen)
        index = by_role(roles, their_roles)
        for place, target in zip(inside, found, strict=True):
            index[place] = target
    in_message = tuple(role == "message" for role in roles)
    last = len(ids) - 1
    fused = tuple(
        place != last and target != NOWHERE and (fuse_template or inside)
        for place, (target, inside) in enumerate(zip(index, in_message, strict=True))
    )
    return Alignment(tuple(ids), tuple(theirs), tuple(index), fused, in_message)


def check_mode(trained: str, asked: str) -> None:
    """Raises `BadAlignment` unless a fuser is used with the alignment it was trained with."""
    if trained != asked:
        raise BadAlignment(
            f"this fuser was trained with alignment {shown(trained)}, and {shown(asked)} is asked "
            "for: it would read other tokens than it has learned.\n"
            f"Set alignment: {trained}, or train a fuser with {asked}."
        )


def roles_of(spans: Spans, placed: Rendered) -> list[str]:
    """Role of each token: before, message, close or answer. A token that holds any character of
    the message is the message's."""
    roles = []
    for start, stop in spans:
        if start < placed.stop and max(stop, start + 1) > placed.start:
            roles.append("message")
        elif start < placed.start:
            roles.append("before")
        else:
            roles.append("close" if start < placed.turn else "answer")
    return roles


def by_role(roles: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """For each token the place of one of its role in `theirs`, counted from the role's end and
    at most to its beginning; `NOWHERE` where they have none, and for the message."""
    index = [NOWHERE] * len(roles)
    for role in ("before", "close", "answer"):
        ours = [place for place, name in enumerate(roles) if name == role]
        like = [place for place, name in enumerate(theirs) if name == role]
        for back, place in enumerate(reversed(ours), 1):
            if like:
                index[place] = like[max(len(like) - back, 0)]
    return index


def span_ends(spans: Spans, theirs: Spans) -> list[int]:
    """For each span the last of `theirs` that overlaps it.

    An empty span, and one between theirs, gets the last that begins before its end, `NOWHERE` if
    there is none. `theirs` are sorted by their starts, as tokenizers give them.
    """
    starts = [start for start, _ in theirs]
    return [bisect_left(starts, max(stop, start + 1)) - 1 for start, stop in spans]


def token_texts(chat: Chat, ids: Sequence[int], spans: Spans, placed: Rendered) -> list[str]:
    """What each token stands for: its own text, or where it holds a part of a character (or
    nothing that decodes) the characters that it overlaps."""
    found = []
    for token, (start, stop) in zip(ids, spans, strict=True):
        text = chat.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        found.append(placed.text[start:stop] if _BROKEN in text or not text else text)
    return found


def choose_tokens(mode: str, sharer: Chat, texts: Sequence[str]) -> list[int | None]:
    """One sharer token for each text: the first or the longest of its tokens; None for no text."""
    known: dict[str, int | None] = {}
    for text in texts:
        if text in known:
            continue
        tokens = sharer.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if not tokens:
            known[text] = None
        elif mode == "first" or len(tokens) == 1:
            known[text] = tokens[0]
        else:
            known[text] = max(tokens, key=lambda token: len(sharer.tokenizer.decode([token])))
    return [known[text] for text in texts]


def _replaced(
    ids: Sequence[int], roles: Sequence[str], chosen: Sequence[int | None]
) -> tuple[list[int], list[str], list[int]]:
    """The sharer's tokens with those chosen in the place of its message, their roles, and where
    each chosen one stands."""
    before = [token for token, role in zip(ids, roles, strict=True) if role == "before"]
    after = [
        (token, role) for token, role in zip(ids, roles, strict=True) if role in ("close", "answer")
    ]
    found, tokens = [], list(before)
    for token in chosen:
        found.append(NOWHERE if token is None else len(tokens))
        if token is not None:
            tokens.append(token)
    names = ["before"] * len(before) + ["message"] * (len(tokens) - len(before))
    return [*tokens, *(token for token, _ in after)], [*names, *(role for _, role in after)], found


def _check_shared(ids: Sequence[int], receiver: Chat, sharer: Chat) -> None:
    """Tokens that the sharer knows must be the same ones; those it does not know it reads as the
    rows of its embedding that they are (Qwen2.5 for Qwen3's <think>)."""
    ours = receiver.tokenizer.convert_ids_to_tokens(list(ids))
    known = len(sharer.tokenizer)
    theirs = sharer.tokenizer.convert_ids_to_tokens([token for token in ids if token < known])
    mine = [text for text, token in zip(ours, ids, strict=True) if token < known]
    for text, other in zip(mine, theirs, strict=True):
        if other is not None and text != other:
            raise BadAlignment(
                f"alignment off: the sharer would read {shown(other)} where the receiver reads "
                f"{shown(text)}, since {receiver.name} and {sharer.name} have other vocabularies.\n"
                "Choose alignment span_end, or longest or first."
            )


def _shifted(span: tuple[int, int], by: int) -> tuple[int, int]:
    return span[0] - by, span[1] - by
