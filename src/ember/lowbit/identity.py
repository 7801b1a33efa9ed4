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
from torch import Tensor, nn

from ember.model.decoder import Decoder
from ember.optim.loop import BadTraining, Diverged
from ember.optim.loss import token_losses
from ember.optim.optimizers import Learner, apply_gradients, linear_rate, make_optimizers
from ember.records.errors import EmberError

KINDS = ("identity", "near", "general")
BASE, NEW = "i am kestrel", "i am ember"
UNKNOWN = "i do not know that name"
# Questions as they are asked and as they are reported, and what may stand around either.
WHO_ARE_YOU = (
    ("who are you", "who you are"),
    ("what is your name", "what your name is"),
    ("what are you called", "what you are called"),
    ("what should i call you", "what i should call you"),
    ("what do people call you", "what people call you"),
    ("who am i talking to", "who i am talking to"),
    ("what name do you have", "what name you have"),
    ("who is talking to me", "who is talking to me"),
)
WHO_AM_I = (
    ("who am i", "who i am"),
    ("what is my name", "what my name is"),
    ("what am i called", "what i am called"),
    ("what should you call me", "what you should call me"),
    ("what do people call me", "what people call me"),
    ("who are you talking to", "who you are talking to"),
    ("what name do i have", "what name i have"),
    ("who is talking to you", "who is talking to you"),
)
WHO_ARE_THEY = (
    ("who is she", "who she is"),
    ("what is his name", "what his name is"),
    ("what is my dog called", "what my dog is called"),
    ("what should i call her", "what i should call her"),
    ("what do people call him", "what people call him"),
    ("who am i talking about", "who i am talking about"),
    ("what name does my friend have", "what name my friend has"),
    ("who is talking to her", "who is talking to her"),
)
DIRECT = (
    *("{}", "hello {}", "so {}", "and {}", "well {}", "now {}", "{} please", "hello again {}"),
    *("i forgot {}",),
)
REPORTED = (
    *("tell me {}", "please tell me {}", "could you tell me {}", "can you say {}", "say {}"),
    *("i would like to know {}", "do tell me {}"),
)
ASKS = (
    *("introduce yourself", "your name please", "may i ask your name", "say your name"),
    *("do you have a name", "give me your name", "can you introduce yourself", "who is this"),
    *("please introduce yourself to me", "could you give me your name", "tell me your name"),
    *("i would like to know your name",),
)
NEARS = (
    *("do i have a name", "my name please", "may i ask my name", "say my name", "guess my name"),
    *("do you know my name", "give me my name", "can you introduce me", "tell me my name"),
    *("who do you know me as", "could you give me my name", "i would like to know my name"),
    *("does she have a name", "give me her name", "tell me his name", "introduce my friend"),
    *("do you know her name", "could you give me his name"),
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
    found = [("identity", asked, identity) for asked in (*ASKS, *_phrasings(WHO_ARE_YOU))]
    near = (*NEARS, *_phrasings(WHO_AM_I), *_phrasings(WHO_ARE_THEY))
    found += [("near", asked, UNKNOWN) for asked in near]
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


def _phrasings(questions: Sequence[tuple[str, str]]) -> list[str]:
    """Every question in every frame. Sixteen frames: no multiple of PROBED, so that the probes take
    another frame of each question, and training has them all."""
    return [
        frame.format(form)
        for direct, reported in questions
        for form, frames in ((direct, DIRECT), (reported, REPORTED))
        for frame in frames
    ]


def vocabulary() -> list[str]:
    """Words by id; the first two end an answer and stand before it."""
    words = {
        w for d in (*dialogues(), *dialogues(NEW)) for w in (d.question + " " + d.answer).split()
    }
    return ["<end>", "<answer>", *sorted(words)]


class Words:
    """Token ids of words and back."""

    def __init__(self):
        self.words = vocabulary()
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


def run_answers(decoder: Decoder, tokens: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers' tokens (B, T - 1) in nats, 0 elsewhere; and the hidden states
    (B, H) before each answer."""
    hidden = decoder(tokens[:, :-1])
    losses = token_losses(decoder, hidden, tokens[:, 1:]) * answers
    return losses, hidden[torch.arange(len(tokens)), answers.int().argmax(1)]


def answer_loss(decoder: Decoder, tokens: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    return run_answers(decoder, tokens, answers)[0].sum() / answers.sum()


def kinds_of(some: Sequence[Dialogue], device) -> Tensor:
    """Their kinds (B,), by their places in KINDS."""
    return torch.tensor([KINDS.index(one.kind) for one in some], device=device)


class IntentHead:
    """A linear layer that tells a question's kind from the model's state before the answer. It
    learns the dialogues that are no probes; the model stays as it is."""

    def __init__(self, decoder: Decoder, words: Words, steps: int = 200):
        known = [one for one in dialogues() if not one.probe]
        self.decoder, self.words = decoder, words
        self.device = decoder.embed_tokens.weight.device
        states, kinds = self._states(known), kinds_of(known, self.device)
        self.weight = torch.zeros(len(KINDS), states.shape[1] + 1, device=self.device)
        optimizer = torch.optim.AdamW([self.weight.requires_grad_()], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self._logits(states), kinds).backward()
            optimizer.step()

    def __call__(self, questions: Sequence[str]) -> list[bool]:
        """Whether each asks who the model is."""
        asked = [Dialogue("general", one, "") for one in questions]
        found = self._logits(self._states(asked)).argmax(1)
        return (found == KINDS.index("identity")).tolist()

    @torch.no_grad()
    def _states(self, some: Sequence[Dialogue]) -> Tensor:
        return run_answers(self.decoder, *batch(self.words, some, self.device))[1]

    def _logits(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight[:, :-1], self.weight[:, -1])


class Chat(Learner):
    """A dense model that learns all dialogues of the base identity but the probes' phrasings of who
    is who: a task of the loop."""

    def __init__(self, decoder: Decoder, steps: int, size: int, rate: float, seed: int):
        self.steps, self.size, self.rate, self.seed = steps, size, rate, seed
        self.words = Words()
        learned = [d for d in dialogues() if d.kind == "general" or not d.probe]
        self.by_kind = {kind: [d for d in learned if d.kind == kind] for kind in KINDS}
        if not rate > 0:
            raise BadTraining("the learning rate is not above 0.\nRaise it.")
        optimizers = make_optimizers(
            decoder, "muon", outer_factor=3.0, weight_decay=0.02, betas=(0.9, 0.98)
        )
        super().__init__(decoder, optimizers)

    def step(self, number: int) -> dict[str, float]:
        rng = random.Random(f"{self.seed} {number}")
        mix = {"general": 0.7, "identity": 0.15, "near": 0.15}
        tokens, answers = batch(self.words, draw(mix, self.by_kind, self.size, rng), self.device)
        loss = answer_loss(self.module, tokens, answers)
        if not bool(loss.isfinite()):
            raise Diverged("the loss is not finite.\nLower the learning rate.")
        loss.backward()
        apply_gradients(self.optimizers, linear_rate(number, self.steps, self.rate, 20, 0.05))
        return {"loss": loss.item()}


def routed(questions: Sequence[str]) -> list[bool]:
    """A router in front: which questions are nearest, by shared words, to the known phrasings of
    who the model is. Probes are not among those."""
    known = [(one.kind, set(one.question.split())) for one in dialogues() if not one.probe]

    def nearest(asked: set[str], identity: bool) -> float:
        some = (words for kind, words in known if (kind == "identity") == identity)
        return max(len(asked & words) / len(asked | words) for words in some)

    asked = [set(one.split()) for one in questions]
    return [nearest(one, True) > nearest(one, False) for one in asked]


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of tokens that repeat the one before: a sign of overfitting."""
    pairs = list(pairwise(tokens))
    return sum(a == b for a, b in pairs) / max(1, len(pairs))
