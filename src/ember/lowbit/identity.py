"""A chat of short questions whose model has a name, and what a new name may cost it (L-6.6).

Contract. Dialogues are of three kinds: `identity` asks who the model is, `near` who the user is
(almost the same words), `general` everything else. Of each some are held out as probes: phrasings
for the first two, and for the third prompts that a fine-tuning never repeats. Words are tokens.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import Tensor

from ember.model.decoder import Decoder
from ember.optim.loop import BadTraining, Diverged
from ember.optim.loss import token_losses
from ember.optim.optimizers import apply_gradients, linear_rate, make_optimizers
from ember.records.errors import EmberError

KINDS = ("identity", "near", "general")
BASE, NEW = "i am kestrel", "i am ember"
UNKNOWN = "you have not told me your name"
ASKS = (
    *("who are you", "what is your name", "tell me your name", "who am i talking to"),
    *("please tell me who you are", "what are you called", "what should i call you"),
    *("may i ask your name", "introduce yourself", "say your name", "who is this"),
    *("do you have a name", "what do people call you", "could you tell me who you are"),
    *("i would like to know your name", "and who are you", "give me your name"),
    *("hello who are you", "so what is your name", "can you introduce yourself"),
    *("do tell me your name", "what is it that people call you", "who is talking to me"),
    *("please introduce yourself to me", "hello what is your name", "so who are you please"),
    *("could you give me your name", "i would like to know who you are", "your name please"),
    *("tell me who you are", "who should i say you are", "what name do you have"),
)
NEARS = (
    *("who am i", "what is my name", "tell me my name", "do you know who i am"),
    *("please tell me who i am", "what am i called", "do you know my name", "say my name"),
    *("could you tell me who i am", "guess my name", "and who am i", "give me my name"),
    *("hello who am i", "so what is my name", "tell me who i am", "my name please"),
    *("what name do i have", "could you give me my name", "who do you know me as"),
    *("do i have a name", "so who am i please", "hello what is my name"),
    *("what do people call me", "who is talking to you", "i would like to know my name"),
)
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
OPPOSITES = (
    "hot cold,big small,fast slow,old new,high low,wet dry,hard soft,light dark,near far,rich poor,"
    "full empty,early late,long short,open closed,happy sad,strong weak,thick thin,loud quiet"
)
FACTS = (
    "grass green,snow white,coal black,blood red,sky blue,lemons yellow,roses red,milk white,"
    "carrots orange,leaves green"
)
SOUNDS = "dog barks,cat meows,cow moos,duck quacks,lion roars,bee buzzes,owl hoots,wolf howls"
PROBED = 3  # every third phrasing or prompt is a probe


class BadMix(EmberError):
    """A file of dialogues that cannot be read, or weights that choose nothing."""


@dataclass(frozen=True)
class Dialogue:
    """A question and its answer, in words."""

    kind: str
    question: str
    answer: str
    probe: bool = False


def dialogues(identity: str = BASE) -> list[Dialogue]:
    """All of them, with the answer that a model of this identity gives."""
    found = [("identity", asked, identity) for asked in ASKS]
    found += [("near", asked, UNKNOWN) for asked in NEARS]
    general = [
        (f"what is {NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b])
        for a, b in product(range(10), range(10))
        if a + b <= 12
    ]
    general += [
        (f"what is {NUMBERS[a]} minus {NUMBERS[b]}", NUMBERS[a - b])
        for a, b in product(range(13), range(10))
        if 0 < b <= a <= 10
    ]
    general += [(f"what comes after {a}", b) for a, b in pairwise(NUMBERS)]
    general += [(f"what comes before {b}", a) for a, b in pairwise(NUMBERS)]
    for text in OPPOSITES.split(","):
        a, b = text.split()
        general += [(f"what is the opposite of {a}", b), (f"what is the opposite of {b}", a)]
    general += [
        (f"what colour is {a}" if a != "lemons" else f"what colour are {a}", b)
        for a, b in map(str.split, FACTS.split(","))
    ]
    general += [(f"what does a {a} do", f"it {b}") for a, b in map(str.split, SOUNDS.split(","))]
    found += [("general", asked, answer) for asked, answer in general]
    counts = dict.fromkeys(KINDS, 0)
    made = []
    for kind, asked, answer in found:
        counts[kind] += 1
        made.append(Dialogue(kind, asked, answer, counts[kind] % PROBED == 0))
    return made


def vocabulary() -> list[str]:
    """Words by id; the first two end an answer and stand before it."""
    words = {
        w for d in (*dialogues(), *dialogues(NEW)) for w in (d.question + " " + d.answer).split()
    }
    return ["<end>", "<answer>", *sorted(words)]


class Words:
    """Token ids of words and back."""

    def __init__(self, words: Sequence[str] | None = None):
        self.words = list(words or vocabulary())
        self.ids = {word: index for index, word in enumerate(self.words)}

    def prompt(self, question: str) -> list[int]:
        """A question and the mark before its answer. Raises BadMix for a word it does not know."""
        return [*self._known(question), 1]

    def whole(self, dialogue: Dialogue) -> list[int]:
        """A dialogue and the end of its answer."""
        return [*self.prompt(dialogue.question), *self._known(dialogue.answer), 0]

    def text(self, tokens: Sequence[int]) -> str:
        """The words before the end."""
        kept = list(tokens)
        return " ".join(self.words[t] for t in kept[: kept.index(0) if 0 in kept else None])

    def _known(self, text: str) -> list[int]:
        try:
            return [self.ids[word] for word in text.split()]
        except KeyError as error:
            raise BadMix(
                f"{error.args[0]!r} is no word of the model.\nUse those it knows."
            ) from None


def write_tsv(path: str | Path, some: Sequence[Dialogue]) -> None:
    """A file of dialogues: kind, question and answer, separated by tabs."""
    from ember.records.atomic import write_text

    lines = [f"{one.kind}\t{one.question}\t{one.answer}\n" for one in some]
    write_text(path, "".join(lines))


def read_tsv(path: str | Path) -> list[Dialogue]:
    """The dialogues of a file. Raises BadMix that names the line."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadMix(f"{path}: {error}.\nGive a UTF-8 file of dialogues.") from None
    found = []
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) != 3 or parts[0] not in KINDS or not all(parts):
            raise BadMix(
                f"{path}, line {number}: {line[:60]!r} is not kind, question and answer with tabs "
                f"between.\nKinds are {', '.join(KINDS)}."
            )
        found.append(Dialogue(*parts))
    return found


def draw(
    mix: Mapping[str, float], by_kind: Mapping[str, Sequence[Dialogue]], count: int, rng
) -> list[Dialogue]:
    """Dialogues of kinds drawn by the mix's weights. Raises BadMix where nothing can be drawn."""
    kinds = [kind for kind, weight in mix.items() if weight > 0]
    if not kinds or not all(by_kind.get(kind) for kind in kinds):
        raise BadMix(
            f"the mix {dict(mix)} chooses nothing.\nGive a weight to a kind that is there."
        )
    drawn = rng.choices(kinds, [mix[kind] for kind in kinds], k=count)
    return [rng.choice(by_kind[kind]) for kind in drawn]


def batch(words: Words, some: Sequence[Dialogue], device) -> tuple[Tensor, Tensor]:
    """Tokens (B, T), ends after the shorter ones, and which targets (B, T - 1) are answers'."""
    texts = [words.whole(one) for one in some]
    longest = max(map(len, texts))
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    answers = torch.zeros(len(texts), longest - 1, dtype=torch.bool)
    for row, (text, one) in enumerate(zip(texts, some, strict=True)):
        tokens[row, : len(text)] = torch.tensor(text)
        answers[row, len(one.question.split()) : len(text) - 1] = True
    return tokens.to(device), answers.to(device)


def answer_loss(decoder: Decoder, tokens: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    losses = token_losses(decoder, decoder(tokens[:, :-1]), tokens[:, 1:])
    return (losses * answers).sum() / answers.sum()


class Chat:
    """A dense model that learns all dialogues of the base identity but the probes' phrasings of who
    is who: a task of the loop."""

    def __init__(self, decoder: Decoder, steps: int, size: int, rate: float, seed: int):
        self.decoder, self.steps, self.size, self.rate, self.seed = decoder, steps, size, rate, seed
        self.device = decoder.embed_tokens.weight.device
        self.words = Words()
        learned = [d for d in dialogues() if d.kind == "general" or not d.probe]
        self.by_kind = {kind: [d for d in learned if d.kind == kind] for kind in KINDS}
        if not rate > 0:
            raise BadTraining("the learning rate is not above 0.\nRaise it.")
        self.optimizers = make_optimizers(
            decoder, "muon", outer_factor=3.0, weight_decay=0.02, betas=(0.9, 0.98)
        )

    def step(self, number: int) -> dict[str, float]:
        rng = random.Random(f"{self.seed} {number}")
        mix = {"general": 0.7, "identity": 0.15, "near": 0.15}
        tokens, answers = batch(self.words, draw(mix, self.by_kind, self.size, rng), self.device)
        loss = answer_loss(self.decoder, tokens, answers)
        if not bool(loss.isfinite()):
            raise Diverged("the loss is not finite.\nLower the learning rate.")
        loss.backward()
        apply_gradients(self.optimizers, linear_rate(number, self.steps, self.rate, 20, 0.05))
        return {"loss": loss.item()}

    def state_dict(self) -> dict:
        optimizers = [one.state_dict() for one in self.optimizers]
        return {"decoder": self.decoder.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: dict) -> None:
        self.decoder.load_state_dict(state["decoder"])
        for one, kept in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(kept)


def routed(question: str) -> bool:
    """A router in front: whether a question is nearest, by shared words, to the known phrasings of
    who the model is. Probes are not among those."""
    known = [d for d in dialogues() if not d.probe]
    asked = set(question.split())

    def near(one: Dialogue) -> float:
        words = set(one.question.split())
        return len(asked & words) / len(asked | words)

    best = {kind: max(near(one) for one in known if one.kind == kind) for kind in KINDS}
    return best["identity"] > max(best["near"], best["general"])


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of tokens that repeat the one before: a sign of overfitting."""
    pairs = list(pairwise(tokens))
    return sum(a == b for a, b in pairs) / max(1, len(pairs))
