"""Text of a growing list of tokens, and stop strings in it, wherever token boundaries fall."""

from collections.abc import Callable, Sequence

Detokenize = Callable[[Sequence[int]], str]
"""Gives the text of token ids; what is not (yet) a character ends in U+FFFD."""

UNFINISHED = "\ufffd"
PENDING = 8  # tokens after which a character that does not end is taken for broken


class TextStream:
    """Follows one completion. Each token is decoded with the few before it, not with all."""

    def __init__(self, decode: Detokenize, stops: Sequence[str] = ()):
        self._decode, self._stops = decode, tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._ids: list[int] = []
        self._start = self._read = 0  # tokens before the unread ones, and the first of these
        self._text, self._given = "", 0

    def add(self, token: int) -> str | None:
        """Appends a token; the stop string that it completes, if any."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if after.endswith(UNFINISHED) and len(self._ids) - self._read < PENDING:
            return None
        new = after[len(before) :]
        self._start, self._read = self._read, len(self._ids)
        first = max(0, len(self._text) - self._longest + 1)  # a stop may begin in what was there
        self._text += new
        found = [(at, stop) for stop in self._stops if (at := self._text.find(stop, first)) >= 0]
        return min(found)[1] if found else None

    def take(self, *, last: bool = False) -> str:
        """Text not yet given out; while more may come, without what could begin a stop string."""
        if last:
            whole = final_text(self._decode, self._ids, self._stops)
        else:
            lengths = range(self._longest - 1, 0, -1)
            begun = (n for n in lengths if any(s.startswith(self._text[-n:]) for s in self._stops))
            whole = self._text[: len(self._text) - next(begun, 0)]
        part, self._given = whole[self._given :], max(self._given, len(whole))
        return part


def final_text(decode: Detokenize, tokens: Sequence[int], stops: Sequence[str]) -> str:
    """Text of a finished completion, up to the first stop string in it."""
    text = decode(tokens)
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
