"""Packed layers beside their dequantised reference, whole and with planted faults (L-4)."""

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path

from ember.measure.device import device_name
from ember.studies.lowbit.debug.tables import LOWBIT_DEBUG
from ember.studies.lowbit.texts import passages
from ember.studies.measured import on_device
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(LOWBIT_DEBUG)
def find_faults(
    *,
    model: str | Path,
    tokenizer: str | Path,
    corpus,
    tokens: int,
    new_tokens: int,
    max_repeats: int,
    threshold: float,
    max_kl: float,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of LOWBIT_DEBUG. The reference has the packed layers' own weights, dequantised: what
    quantising costs is no fault."""
    import torch

    from ember.lowbit.debug import (
        as_integers,
        by_module,
        check_scales,
        compare_layers,
        first_exploding,
        first_tokens,
    )
    from ember.model.packed import PackedLinear, densify, quantise_decoder
    from ember.text.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    device, got, about = on_device(model, device, dtype)
    about |= {"device_name": device_name(device)}
    quantise_decoder(got, "nvfp4")
    reference = deepcopy(got)
    densify(reference)
    [text] = passages(corpus, words, 1, tokens, seed)
    prompt = torch.tensor([words.encode(text)], device=device)
    layers = [m for m in got.modules() if isinstance(m, PackedLinear)]
    planted = {"none": [], "integers": layers[len(layers) // 2 :][:1], "integers_all": layers}

    def misread(layer, x):
        return torch.nn.functional.linear(x, as_integers(layer).dense(x.dtype), layer.bias)

    def last_logits(decoder, ids):
        return decoder.logits(decoder(ids, last=1))[0, -1]

    rows = []
    for fault, some in planted.items():
        for layer in some:
            layer.forward = partial(misread, layer)

        def say(tool, found, worst, said, fault=fault):
            right = found == (fault != "none")
            rows.append(
                {"fault": fault, "tool": tool, "found": found, "right": right, "worst": worst}
                | {"said": said}
                | about
            )
            log.info("%s, %s: %s", fault, tool, said)

        found = compare_layers(got, reference, prompt)
        first = first_exploding(found, threshold)
        worst = max(one.rel for one in found)
        say("layers", first is not None, worst, first.layer if first else "no layer explodes")
        told = check_scales(*_probe(device), misread if some else by_module)
        say("scales", not told.right, told.worst, told.diagnosis)
        paths = {"reference": partial(last_logits, reference), "packed": partial(last_logits, got)}
        other = first_tokens(paths, prompt)[1]
        text = f"{other.overlap} of 10 most likely tokens shared, {other.nan} NaN"
        say("first_token", not other.kl <= max_kl, other.kl, text)
        say("generation", *_generated(got, prompt, new_tokens, max_repeats))
        for layer in some:
            del layer.forward
    return rows


def _probe(device: str) -> tuple:
    """A layer whose weights are its blocks' scales, and these: E4M3 numbers of all sizes."""
    import torch

    from ember.model.packed import LinearNVFP4

    scales = torch.logspace(-6, 8, 32, base=2.0, device=device).view(8, 4).to(torch.float8_e4m3fn)
    layer = LinearNVFP4(4 * LinearNVFP4.block, 8).to(device)
    layer.qdata.fill_(0x22)  # two codes of 1.0
    layer.scale.copy_(scales.view(torch.uint8))
    return layer, scales


def _generated(decoder, prompt, new_tokens: int, max_repeats: int) -> tuple[bool, None, str]:
    """Whether greedy generation degenerates, and what it says. By the decoder itself: the fast
    backends read packed weights past a planted fault."""
    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.engine.scheduler import Degenerate, NotFinite

    tokens = prompt[0].tolist()
    engine = Engine(decoder, capacity=len(tokens) + new_tokens, backend="eager")
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, max_repeats=max_repeats)
    try:
        [[done]] = engine.generate([tokens], params)
    except (Degenerate, NotFinite) as error:
        return True, None, str(error).splitlines()[0]
    return False, None, f"{len(set(done.tokens))} different tokens of {len(done.tokens)}"
