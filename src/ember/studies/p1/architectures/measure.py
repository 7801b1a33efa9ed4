"""The one decoder beside Transformers' models, architecture by architecture, in float32.

A small model with every feature of a published one (its norms, rotations, windows, biases) gets
random weights so wild that each of them matters, is written as a Hugging Face checkpoint, and read
by both. What is compared: logits however the prompt is run, the caches, single layers, and greedy
generation by the engine.
"""

import itertools
import logging
import math
import sys
import tempfile
from dataclasses import replace
from operator import eq
from pathlib import Path

from ember.measure.progress import Progress
from ember.model.architecture import Architecture
from ember.studies.measured import blank
from ember.studies.p1.architectures.tables import ARCHITECTURES
from ember.studies.steps import makes

log = logging.getLogger(__name__)

BATCH = 2
WINDOW = 11  # tokens that a small model's sliding layers see; prompts are longer
DIFFERENCES = ("logits_whole", "logits_pieces", "logits_steps", "keys_values", "hidden")


@makes(ARCHITECTURES)
def check_architectures(
    *, presets: list[str], tokens: int, new_tokens: int, draws: int, tolerance: float, seed: int
) -> list[dict]:
    """Rows of ARCHITECTURES: one per preset, the worst of all draws.

    A difference is reported, not raised; without Transformers rows are skipped with the reason.
    Raises `BadArchitecture` for an unknown preset.
    """
    import torch

    from ember.backends.select import Case, select

    small = {preset: shrink(preset, tokens + new_tokens) for preset in presets}
    try:
        import transformers
    except ImportError as error:
        transformers, missing = None, f"not installed here: {error}"
    else:
        transformers.utils.logging.disable_progress_bar()
    rows, progress = [], Progress(log, len(presets) * draws)
    for preset, arch in small.items():
        row = blank(
            ARCHITECTURES,
            architecture=preset,
            model_type=arch.model_type,
            parameters=arch.parameter_count(),
            prompt_tokens=tokens,
            sliding_window=arch.sliding_window,
            draws=draws,
            fast_step=select(Case(arch, torch.device("cpu"), torch.float32)).name != "eager",
            tolerance=tolerance,
            transformers=None if transformers is None else transformers.__version__,
            weights="random",
            evidence="measured",
        )
        if transformers is None:
            rows.append(row | {"status": "skipped", "reason": missing})
            continue
        found = []
        for draw in range(draws):
            found.append(compare(arch, seed + draw, tokens, new_tokens))
            progress.step(f"{preset}, draw {draw + 1}")
        row |= {name: max(one[name] for one in found) for name in DIFFERENCES}
        row["logit_std"] = sum(one["logit_std"] for one in found) / draws
        row["generated_tokens"] = draws * new_tokens
        row["tokens_equal"] = sum(one["tokens_equal"] for one in found)
        close = all(row[name] <= tolerance for name in DIFFERENCES)
        row["agrees"] = close and row["tokens_equal"] == row["generated_tokens"]
        if not row["agrees"]:
            log.warning("%s differs from Transformers' model: %s", preset, row)
        rows.append(row)
    return rows


def shrink(preset: str, positions: int) -> Architecture:
    """A small architecture with all the features of a published one."""
    arch = Architecture.make(preset)
    period = 1 + next((n for n in range(arch.num_layers) if arch.window(n) is None), 0)
    layers = max(3, period + 1)  # of a repeated pattern all kinds of layers, and the first again
    kv_heads = 4 if arch.groups == 1 else min(arch.num_kv_heads, 2)
    scaling = arch.rope_scaling
    if scaling is not None and scaling.is_llama3:
        scaling = replace(scaling, original_max_positions=positions // 2)
    return Architecture.make(
        preset,
        hidden_size=64,
        intermediate_size=160,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=16,
        vocab_size=499,
        max_positions=max(positions, 64),
        rope_scaling=scaling,
        sliding_window=None if arch.sliding_window is None else WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )


def compare(arch: Architecture, seed: int, tokens: int, new_tokens: int) -> dict:
    """Largest absolute differences to Transformers with one draw of weights and prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    from ember.model.checkpoint import load_decoder, random_decoder, save_decoder

    generator = torch.Generator().manual_seed(seed)
    decoder = random_decoder(arch, seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.5 * parameter.shape[-1] ** -0.5)
    with tempfile.TemporaryDirectory() as folder:
        save_decoder(decoder, Path(folder) / "model", weights="random")
        ours = load_decoder(Path(folder) / "model")
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "model").eval()
    prompt = torch.randint(arch.vocab_size, (BATCH, tokens), generator=generator)
    with torch.inference_mode():
        return _differences(ours, theirs, prompt) | _greedy(ours, theirs, prompt[0], new_tokens)


def _differences(ours, theirs, prompt) -> dict:
    import torch

    from ember.cache.contiguous import ContiguousCache

    arch, count = ours.arch, prompt.shape[1]
    expected = theirs(prompt, use_cache=True, output_hidden_states=True)
    states = expected.hidden_states  # entering each layer; the last one is normed

    def run(stops: list[int]):
        cache = ContiguousCache(arch, BATCH, count)
        parts = [
            ours.logits(ours(prompt[:, start:stop], cache=cache))
            for start, stop in itertools.pairwise([0, *stops])
        ]
        return _apart(torch.cat(parts, 1), expected.logits), cache

    whole, cache = run([count])
    thirds = sorted({count // 3, count // 3 + 1, 2 * count // 3, count} - {0})
    kept = []
    for layer, held in enumerate(expected.past_key_values.layers):
        length = held.keys.shape[2]  # a sliding layer of Transformers forgets what it cannot see
        k, v = cache.read(layer, count - length)
        kept += [_apart(k, held.keys), _apart(v, held.values)]
    alone = [
        ours(hidden=states[layer], layers=range(layer, layer + 1))
        for layer in range(arch.num_layers)
    ]
    alone[-1] = ours.norm(alone[-1])
    return {
        "logit_std": expected.logits.std().item(),
        "logits_whole": whole,
        "logits_pieces": run(thirds)[0],
        "logits_steps": run(list(range(1, count + 1)))[0],
        "keys_values": max(kept),
        "hidden": max(_apart(a, b) for a, b in zip(alone, states[1:], strict=True)),
    }


def _greedy(ours, theirs, prompt, new_tokens: int) -> dict:
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.engine.scheduler import NotFinite

    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    # The mask, because generate would take token 0 in the prompt for padding and skip it.
    out = theirs.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        max_new_tokens=new_tokens,
        do_sample=False,
    )
    expected = out[0, len(prompt) :].tolist()
    engine = Engine(ours, capacity=len(prompt) + new_tokens)
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    try:
        [[completion]] = engine.generate([prompt.tolist()], sampling)
    except NotFinite:
        return {"tokens_equal": 0}
    pairs = zip(completion.tokens, expected, strict=True)
    return {"tokens_equal": sum(1 for _ in itertools.takewhile(lambda pair: eq(*pair), pairs))}


def _apart(a, b) -> float:
    """Largest absolute difference; the largest float where either is not finite."""
    apart = (a - b).abs().max().item() if a.numel() else 0.0
    return apart if math.isfinite(apart) else sys.float_info.max
