"""This engine beside Transformers' `generate`: greedy, same model, tokens, threads and process.

The two take turns, and which goes first alternates, so that drift of the machine biases neither.
Both are timed alike: from the call to the first token's logits is prefill, the rest is decode.
"""

import logging
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ember.measure.clock import PhaseClock, timed
from ember.measure.device import synchronize
from ember.measure.progress import Progress
from ember.measure.statistics import leading_equal
from ember.measure.turns import rounds
from ember.model.reference import load_peer
from ember.studies.measured import blank, on_device
from ember.studies.p1.speed.tables import ENGINE_SPEED
from ember.studies.steps import makes

log = logging.getLogger(__name__)

Timed = tuple[float, float, list[int]]
"""Milliseconds of prefill, milliseconds of decode, tokens."""


@makes(ENGINE_SPEED)
def compare_engines(
    *,
    model: str | Path,
    workload,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    warmup: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of ENGINE_SPEED: `repeats` runs of each engine at batch 1.

    `tokens_per_s` is the decode speed, (new_tokens - 1) / decode time. Repeat i uses document
    (seed + i) of the workload for both. Without Transformers its row is skipped with the reason.
    """
    import torch

    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    streams = read_workload(workload)
    runs, missing = {"ember": ember_run(decoder, prompt_tokens, new_tokens, device)}, {}
    try:
        runs["transformers"] = transformers_run(model, decoder, new_tokens, device)
    except ImportError as error:
        missing["transformers"] = f"not installed here: {error}"
    about |= {"prompt_tokens": prompt_tokens, "generated_tokens": new_tokens}
    about["threads"] = torch.get_num_threads()
    rows, progress = [], Progress(log, (warmup + repeats) * len(runs))
    for turn, order in rounds(runs, range(-warmup, repeats)):
        prompt = streams.prompt((seed + turn) % len(streams.documents), prompt_tokens, 0)
        found = {}
        for name in order:
            found[name] = runs[name](prompt)
            progress.step(f"{name}, {prompt_tokens}/{new_tokens}")
        if turn >= 0:
            rows += [_row(name, turn, found, about) for name in found]
    return rows + [
        _row(name, 0, {}, about) | {"status": "skipped", "reason": reason}
        for name, reason in missing.items()
    ]


def ember_run(decoder, prompt_tokens: int, new_tokens: int, device: str):
    """A call that times one greedy generation by this engine."""
    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine

    engine = Engine(decoder, capacity=prompt_tokens + new_tokens)
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)

    def run(prompt: list[int]) -> Timed:
        clock = PhaseClock(device)
        total, [[completion]] = timed(
            lambda: engine.generate([prompt], sampling, clock=clock), device
        )
        prefill = clock.times_ms()["prefill"]
        return prefill, total - prefill, list(completion.tokens)

    return run


def transformers_run(
    model: str | Path, decoder, new_tokens: int, device: str
) -> Callable[[list[int]], Timed]:
    """A call that times one greedy `generate` (default dynamic cache) of the same model.

    Weights come from the model directory; where it holds none (random weights), from `decoder`.
    Raises ImportError without Transformers.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    peer = load_peer(model, decoder).eval()
    peer.generation_config.eos_token_id = None  # both run to the full length

    class FirstLogits(LogitsProcessor):
        """Stamps the moment the prompt's logits are there."""

        at = None

        def __call__(self, input_ids, scores):
            if self.at is None:
                synchronize(device)
                self.at = time.perf_counter()
            return scores

    def run(prompt: list[int]) -> Timed:
        tokens = torch.tensor([prompt], device=device)
        stamp = FirstLogits()
        synchronize(device)
        began = time.perf_counter()
        with torch.inference_mode():
            out = peer.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=new_tokens,
                logits_processor=LogitsProcessorList([stamp]),
                pad_token_id=0,
            )
        synchronize(device)
        ended = time.perf_counter()
        new = out[0, len(prompt) :].tolist()
        return (stamp.at - began) * 1e3, (ended - stamp.at) * 1e3, new

    return run


def _row(name: str, repeat: int, timed: dict[str, Timed], about: dict) -> dict:
    row = blank(ENGINE_SPEED, engine=name, version=_version(name), repeat=repeat, **about)
    if name in timed:
        row["prefill_ms"], row["decode_ms"], tokens = timed[name]
        row["tokens_per_s"] = (about["generated_tokens"] - 1) / row["decode_ms"] * 1e3
        if "transformers" in timed:
            _, decode, expected = timed["transformers"]
            row["ratio_to_transformers"] = decode / row["decode_ms"]
            row["tokens_equal_share"] = leading_equal(tokens, expected)
    return row


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
