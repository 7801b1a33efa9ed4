"""How an answer is read and scored: one rule for all methods (C-0.4).

The answer's letter. Without a `<think>` block and blanks around it, the text is searched in turn:

1. after the first "answer is", "answer:", "answer would be" (any case): what follows must begin
   with a letter;
2. a text that begins with a letter;
3. a text that names exactly one letter so that it can be meant as a choice: followed by a bracket,
   a stop, a colon or the text's end.

A letter is one of the question's choices; it may stand in brackets, quotes or Markdown, after
"option" or "choice", and must not be part of a word. A small letter, and the capital A, count only
where they cannot be an article: not before a word, but for "because" and its like. Two letters side
by side ("A/B", "A or B") are no answer. What has no letter by this rule is an extraction failure:
it counts as wrong, and how many there are is recorded.
"""

import re

from ember.c2c.data import LETTERS

_OPEN = r"[\s\"'“‘(\[*_`$:]*(?:(?:option|choice|letter)\s+)?[\s\"'“‘(\[*_`$]*"
_CLOSE = r"[\"'”’)\]*_`$]*"
_SAID = re.compile(r"\banswer\b\s*(?:is|would\s+be|will\s+be|=|:)", re.IGNORECASE)
_SECOND = re.compile(rf"\s*(?:/|,|\bor\b|\band\b|&)\s*[\"'(\[*]*[{LETTERS}]\b")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def answer_letter(text: str, choices: int = 4) -> str | None:
    """The letter that a completion answers with, or None (see the module's rule)."""
    if not choices:
        return None
    text = _THOUGHT.sub("", text).strip()
    if said := _SAID.search(text):
        return _leading(text[said.end() :], choices)
    return _leading(text, choices) or _only(text, choices)


def _leading(text: str, choices: int) -> str | None:
    letters = LETTERS[:choices]
    found = re.match(f"{_OPEN}([{letters}{letters.lower()}])(?![\\w'’])({_CLOSE})", text)
    if found is None:
        return None
    letter, rest = found[1], text[found.end() :]
    if _SECOND.match(rest):
        return None
    set_apart = found[2] or not re.match(r"\s+(?!because|since|as\b|due\b)\w", rest)
    if letter in "bcdeBCDE":
        return letter.upper() if letter.isupper() or set_apart else None
    return "A" if set_apart else None


def _only(text: str, choices: int) -> str | None:
    letter = f"(?<![\\w'’/])[{LETTERS[:choices]}]"
    if any(_SECOND.match(text, found.end()) for found in re.finditer(rf"{letter}\b", text)):
        return None
    named = {*re.findall(rf"{letter}(?=[.):\],;!*\"]|\s*$)", text)}
    return named.pop() if len(named) == 1 else None


def graded(text: str, key: str, choices: int = 4) -> dict:
    """What is recorded of one completion: its letter, whether that is right, and whether there is
    none."""
    letter = answer_letter(text, choices)
    return {"answer": letter, "correct": letter == key, "failed": letter is None}
