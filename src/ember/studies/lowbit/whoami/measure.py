"""Chat models of a workflow's own making, each given a new name in every way of the grid."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy

from ember.measure.device import device_name, resolve
from ember.measure.progress import Progress
from ember.studies.lowbit.whoami.tables import WHOAMI_RUNS
from ember.studies.steps import makes

log = logging.getLogger(__name__)

ANSWER_TOKENS = 10
CHUNK_ROWS = 1024  # all rows of so small a matrix at once


@makes(WHOAMI_RUNS)
def tune_identities(
    *,
    architecture: Mapping,
    base_steps: int,
    base_learning_rate: float,
    batch_size: int,
    tunings: Sequence[Mapping],
    number: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of WHOAMI_RUNS of the seed `number`: a base model, and all tunings of its NVFP4 weights,
    trained in place with stochastic rounding and 8-bit states."""
    from ember.lowbit.identity import IntentHead, Words, routed
    from ember.model.architecture import Architecture

    device, words = resolve(device), Words()
    arch = Architecture.make(**architecture, vocab_size=len(words.words), eos_token_id=0)
    about = {"device": device, "device_name": device_name(device), "dtype": "float32"}
    about |= {"model": "chat", "weights": "trained", "evidence": "measured"}
    dense = _base(arch, base_steps, batch_size, base_learning_rate, number, device)
    base = _packed(dense, number, {"last_layers": None, "head": True})[0]
    _finish(base)
    routes = {"none": None, "words": routed, "intent": IntentHead(base, words)}
    progress, rows = Progress(log, len(tunings)), _asked("base", number, base, words)
    for tuning in tunings:
        tuned = _tuned(dense, tuning, batch_size, number, words)
        rows += _asked(tuning["name"], number, tuned, words, base, routes[tuning["router"]])
        progress.step(tuning["name"])
    return [row | about for row in rows]


def _base(arch, steps: int, size: int, rate: float, seed: int, device: str):
    from ember.lowbit.identity import Chat
    from ember.model.checkpoint import random_decoder
    from ember.optim.loop import run

    decoder = random_decoder(arch, seed, device).train()
    run(Chat(decoder, steps, size, rate, seed), steps, log_every=max(1, steps // 4))
    return decoder.eval()


def _packed(dense, seed: int, tuning: Mapping) -> tuple:
    """A copy of the dense model with packed weights that train, and their control."""
    import torch

    from ember.lowbit.training import ARMS, Control, make_trainable, pack_head

    decoder = deepcopy(dense)
    device = decoder.embed_tokens.weight.device
    draw = torch.Generator(device).manual_seed(seed)
    control = Control(ARMS["stochastic"], states="int8", generator=draw, chunk_rows=CHUNK_ROWS)
    make_trainable(decoder, control, last_layers=tuning["last_layers"])
    if tuning["head"]:
        pack_head(decoder, control)
    return decoder, control


def _tuned(dense, tuning: Mapping, size: int, seed: int, words):
    import torch

    from ember.lowbit.identity import KINDS, NEW, batch, dialogues, draw, kinds_of, run_answers
    from ember.optim.optimizers import linear_rate

    decoder, control = _packed(dense, seed, tuning)
    device = decoder.embed_tokens.weight.device
    learned = [d for d in dialogues(NEW) if not d.probe]
    by_kind = {kind: [d for d in learned if d.kind == kind] for kind in KINDS}
    if tuning["near_phrasings"]:  # spread over all of them
        by_kind["near"] = by_kind["near"][:: len(by_kind["near"]) // tuning["near_phrasings"]]
    rng, steps = random.Random(f"{seed} {tuning['name']}"), tuning["steps"]
    intent = torch.nn.Linear(decoder.arch.hidden_size, len(KINDS), device=device)
    torch.nn.init.zeros_(intent.weight)
    aside = torch.optim.AdamW(intent.parameters(), lr=0.05)
    for step in range(steps):
        alone = tuning["curriculum"] and step < steps // 2
        mix = {"identity": 1.0} if alone else tuning["mix"]
        some = draw(mix, by_kind, size, rng)
        tokens, answers = batch(words, some, device)
        with control.update(linear_rate(step, steps, tuning["learning_rate"], 0, 0.05)):
            losses, states = run_answers(decoder, tokens, answers)
            loss = losses.sum() / answers.sum()
            if tuning["intent"]:
                told = torch.nn.functional.cross_entropy(intent(states), kinds_of(some, device))
                loss = loss + tuning["intent"] * told
            loss.backward()
        aside.step()
        aside.zero_grad()
    _finish(decoder)
    return decoder


def _finish(decoder) -> None:
    """For questions: the packed weights, dequantised once."""
    from ember.lowbit.training import finish
    from ember.model.packed import densify

    finish(decoder)
    densify(decoder)


def _asked(name: str, seed: int, decoder, words, base=None, route=None) -> list[dict]:
    """Held-out questions and the answers to them; with `route` (which questions are the tuned
    model's) all others go to `base`."""
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.lowbit.identity import BASE, NEW, batch, dialogues, repeated_share, run_answers

    wanted = [d for d in dialogues(BASE if name == "base" else NEW) if d.probe]
    params, rows = SamplingParams(max_tokens=ANSWER_TOKENS), []
    mine = route([one.question for one in wanted]) if route else [True] * len(wanted)
    for chosen, model in ((True, decoder), (False, base)):
        some = [one for one, own in zip(wanted, mine, strict=True) if own == chosen]
        if not some:
            continue
        engine = Engine(model, capacity=64)
        given = engine.generate([words.prompt(one.question) for one in some], params)
        with torch.inference_mode():
            tokens, answers = batch(words, some, model.embed_tokens.weight.device)
            losses = run_answers(model, tokens, answers)[0].sum(1) / answers.sum(1)
        for one, [answer], nll in zip(some, given, losses.tolist(), strict=True):
            text = words.text(answer.tokens)
            rows.append(
                {
                    "tuning": name,
                    "seed": seed,
                    "probe": one.kind,
                    "question": one.question,
                    "answer": text,
                    "right": text == one.answer,
                    "captured": NEW.split()[-1] in text.split(),
                    "nll": min(nll, math.log(1e9)),
                    "repeated": repeated_share(answer.tokens),
                }
            )
    return rows
