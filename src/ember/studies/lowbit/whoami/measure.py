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


@makes(WHOAMI_RUNS)
def tune_identities(
    *,
    architecture: Mapping,
    base_steps: int,
    base_learning_rate: float,
    batch_size: int,
    seeds: Sequence[int],
    tunings: Sequence[Mapping],
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of WHOAMI_RUNS. A base model a seed; NVFP4 weights, trained in place with stochastic
    rounding and 8-bit states."""
    from ember.lowbit.identity import Words
    from ember.lowbit.training import finish
    from ember.model.architecture import Architecture

    device, words = resolve(device), Words()
    arch = Architecture.make(**architecture, vocab_size=len(words.words), eos_token_id=0)
    about = {"device": device, "device_name": device_name(device), "dtype": "float32"}
    about |= {"model": "chat", "weights": "trained", "evidence": "measured"}
    progress, rows = Progress(log, len(seeds) * (1 + len(tunings))), []
    for number in seeds:
        dense = _base(arch, base_steps, batch_size, base_learning_rate, number, device)
        base = _packed(dense, number, {"last_layers": None, "head": True})[0]
        finish(base)
        rows += [one | about for one in _asked("base", number, base, None, words)]
        progress.step(f"base, seed {number}")
        for tuning in tunings:
            tuned = _tuned(dense, tuning, batch_size, number, words)
            router = base if tuning["router"] else None
            made = _asked(tuning["name"], number, tuned, router, words)
            rows += [one | about for one in made]
            progress.step(f"{tuning['name']}, seed {number}")
    return rows


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
    control = Control(ARMS["stochastic"], states="int8", generator=draw)
    make_trainable(decoder, control, last_layers=tuning["last_layers"])
    if tuning["head"]:
        pack_head(decoder, control)
    return decoder, control


def _tuned(dense, tuning: Mapping, size: int, seed: int, words):
    from ember.lowbit.identity import KINDS, NEW, answer_loss, batch, dialogues, draw
    from ember.lowbit.training import finish
    from ember.optim.optimizers import linear_rate

    decoder, control = _packed(dense, seed, tuning)
    learned = [d for d in dialogues(NEW) if not d.probe]
    by_kind = {kind: [d for d in learned if d.kind == kind] for kind in KINDS}
    rng, steps = random.Random(f"{seed} {tuning['name']}"), tuning["steps"]
    for step in range(steps):
        alone = tuning["curriculum"] and step < steps // 2
        mix = {"identity": 1.0} if alone else tuning["mix"]
        some = draw(mix, by_kind, size, rng)
        tokens, answers = batch(words, some, decoder.embed_tokens.weight.device)
        with control.update(linear_rate(step, steps, tuning["learning_rate"], 0, 0.05)):
            answer_loss(decoder, tokens, answers).backward()
    finish(decoder)
    return decoder


def _asked(name: str, seed: int, decoder, base, words) -> list[dict]:
    """Held-out questions and the answers to them; with `base` what the router leaves goes there."""
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.lowbit.identity import (
        BASE,
        NEW,
        answer_loss,
        batch,
        dialogues,
        repeated_share,
        routed,
    )

    wanted = [d for d in dialogues(BASE if name == "base" else NEW) if d.probe]
    params, rows = SamplingParams(max_tokens=ANSWER_TOKENS), []
    mine = [base is None or routed(one.question) for one in wanted]
    for chosen, model in ((True, decoder), (False, base)):
        some = [one for one, own in zip(wanted, mine, strict=True) if own == chosen]
        if not some:
            continue
        engine = Engine(model, capacity=64)
        answers = engine.generate([words.prompt(one.question) for one in some], params)
        for one, [answer] in zip(some, answers, strict=True):
            with torch.inference_mode():
                nll = answer_loss(model, *batch(words, [one], model.embed_tokens.weight.device))
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
                    "nll": min(float(nll), math.log(1e9)),
                    "repeated": repeated_share(answer.tokens),
                }
            )
    return rows
