"""Packed layers beside their dequantised reference, whole and with planted faults (L-4)."""

import logging
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

from ember.studies.lowbit.debug.tables import LOWBIT_DEBUG, LOWBIT_FIRST_TOKEN
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

    _, got, reference, prompt, about = _decoders(
        model, tokenizer, corpus, tokens, device, dtype, seed
    )
    layers = _packed_layers(got)
    planted = {"none": [], "integers": layers[len(layers) // 2 :][:1], "integers_all": layers}

    def misread(layer, x):
        return torch.nn.functional.linear(x, as_integers(layer).dense(x.dtype), layer.bias)

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
        told = check_scales(*_probe(about["device"]), misread if some else by_module)
        say("scales", not told.right, told.worst, told.diagnosis)
        paths = {
            "reference": partial(_last_logits, reference),
            "packed": partial(_last_logits, got),
        }
        other = first_tokens(paths, prompt)[1]
        text = f"{other.overlap} of 10 most likely tokens shared, {other.nan} NaN"
        say("first_token", not other.kl <= max_kl, other.kl, text)
        say("generation", *_generated(got, prompt, new_tokens, max_repeats))
        for layer in some:
            del layer.forward
    return rows


@makes(LOWBIT_FIRST_TOKEN)
def compare_paths(
    *,
    model: str | Path,
    tokenizer: str | Path,
    corpus,
    tokens: int,
    max_kl: float,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of LOWBIT_FIRST_TOKEN: the token after a prompt by the reference (A), by the path that
    trains (B) and by the packed layers (C), of the same codes, with scales misread in one path."""
    import torch

    from ember.lowbit.debug import as_integers, first_tokens
    from ember.lowbit.training import ARMS, Control, make_trainable

    given = (model, tokenizer, corpus, tokens, device, dtype, seed)
    dense, got, reference, prompt, about = _decoders(*given)
    training = deepcopy(got)
    trained = [one.layer for one in make_trainable(training, Control(ARMS["stochastic"]))]
    packed = _packed_layers(got)

    def with_graph(ids):
        with torch.enable_grad():
            return _last_logits(training, ids)

    paths = {
        "reference": partial(_last_logits, reference),
        "training": with_graph,
        "packed": partial(_last_logits, got),
        "unquantised": partial(_last_logits, dense),
    }
    middle, rows = len(packed) // 2, []
    for planted, layers in {
        "none": [],
        "packed, one layer": packed[middle : middle + 1],
        "packed": packed,
        "training, one layer": trained[middle : middle + 1],
        "training": trained,
    }.items():
        scales = [layer.scale for layer in layers]
        for layer in layers:
            layer.scale = as_integers(layer).scales
        for one in first_tokens(paths, prompt):
            faulty = one.path == planted.partition(",")[0]
            found = not one.kl <= max_kl
            rows.append(
                {
                    "planted": planted,
                    "path": one.path,
                    "nan": one.nan,
                    "infinite": one.infinite,
                    "top": " ".join(map(str, one.top)),
                    "overlap": one.overlap,
                    "kl": min(one.kl, sys.float_info.max),
                    "found": found,
                    "right": found == faulty,
                }
                | about
            )
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale
    return rows


def _decoders(model, tokenizer, corpus, tokens: int, device: str, dtype: str, seed: int) -> tuple:
    """The model, its packed form, that dequantised, a prompt (1, T), and what rows say of them."""
    import torch

    from ember.model.packed import densify, quantise_decoder
    from ember.text.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    device, dense, about = on_device(model, device, dtype, named=True)
    got = deepcopy(dense)
    quantise_decoder(got, "nvfp4")
    reference = deepcopy(got)
    densify(reference)
    [text] = passages(corpus, words, 1, tokens, seed)
    prompt = torch.tensor([words.encode(text)], device=device)
    return dense, got, reference, prompt, about


def _packed_layers(decoder) -> list:
    from ember.model.packed import PackedLinear

    return [m for m in decoder.modules() if isinstance(m, PackedLinear)]


def _last_logits(decoder, ids):
    return decoder.logits(decoder(ids, last=1))[0, -1]


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
