"""Decoding with packed weights beside dense ones of the same model, and peers, in turns (L-2)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path

from ember.measure.clock import PhaseClock
from ember.measure.cost import step_tokens
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.peers.client import PeerFailed
from ember.studies.lowbit.kernels.peers import start_peers, step_weight_bytes, times_of, why_not
from ember.studies.lowbit.kernels.setup import prepared, with_best_bandwidth
from ember.studies.lowbit.kernels.tables import DECODE_RUNS
from ember.studies.measured import blank
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(DECODE_RUNS)
def time_decoding(
    *,
    model: str | Path,
    decoded: Sequence[str],
    candidates: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    warmup: int,
    repeats: int,
    peers: Mapping[str, Mapping],
    runtime: Mapping,
    threads: int,
) -> list[dict]:
    """Rows of DECODE_RUNS."""
    import torch

    device, decoder, about = prepared(model, runtime, threads)
    with torch.inference_mode():
        rows = _decoding(
            *(decoder, decoded, candidates, prompt_tokens, new_tokens),
            *(warmup, repeats, runtime["seed"], about, peers, model, threads),
        )
    return with_best_bandwidth(rows, device)


def _decoding(
    decoder,
    formats: Sequence[str],
    candidates: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    warmup: int,
    repeats: int,
    seed: int,
    about: dict,
    peers: Mapping[str, Mapping],
    model: str | Path,
    threads: int,
) -> list[dict]:
    """Generations by dense and packed decoders of the same weights, in turns, and by peers."""
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.model.packed import quantise_decoder

    kinds: dict[tuple[str, str], object] = {("dense", "dense"): decoder}
    for format in formats:
        layers = _sharing(decoder)
        quantise_decoder(layers, format)
        whole = _sharing(layers)
        quantise_decoder(whole, format, skip=())
        kinds |= {(format, "dense"): layers, (format, "packed"): whole}
        log.info("packed all layers in %s", format)

    def drawn() -> list[int]:
        return torch.randint(decoder.arch.vocab_size, (prompt_tokens,)).tolist()

    capacity = prompt_tokens + new_tokens
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, seed=seed)
    facts, own, engines = {}, {}, {}
    for (format, head), each in kinds.items():
        engine = Engine(each, capacity=capacity, require_native=True)
        name = f"ember, {format}, {head} head"
        facts[name] = {"engine": "ember", "format": format, "head": head}
        facts[name]["weight_bytes"] = step_weight_bytes(each)
        engines[name] = engine
        own[name] = partial(_times, engine, drawn, sampling, about["device"])
    setup = {"device": about["device"], "dtype": about["dtype"], "seed": seed, "weights": "random"}
    setup |= {"threads": threads, "capacity": capacity, "candidates": max(candidates)}
    rows = []
    with ExitStack() as stack:
        packed = kinds.get(("nvfp4", "dense"))
        running, said = start_peers(stack, peers, model, packed, setup)
        facts |= said
        others = {
            name: partial(times_of, peer, drawn, new_tokens=new_tokens)
            for name, peer in running.items()
        }
        # On a GPU steps take 1 to 3 % longer for a while after another process has worked there.
        groups = [own, others] if about["device"].startswith("cuda") else [own | others]
        together = sum(map(len, groups))
        progress = Progress(log, len(candidates) * (warmup + repeats) * together)
        for count in candidates:
            tokens = step_tokens(prompt_tokens, count, new_tokens)
            size = decoder.embed_tokens.weight.element_size()
            what = {"rows": count, "kv_bytes": tokens * decoder.arch.kv_bytes_per_token(size)}
            what |= {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens} | about
            for calls, number, name in _turns(groups, warmup, repeats):
                try:
                    prefill, step = calls[name](candidates=count)
                except PeerFailed as error:
                    facts[name] |= why_not(error)
                    del calls[name]
                    continue
                timed = {"repeat": number, "prefill_ms": prefill, "step_ms": step}
                timed["tokens_per_s"] = count / step * 1e3
                if name in engines:  # it is chosen for the first prompt
                    facts[name]["backend"] = engines[name].backend.name
                if number >= 0:
                    rows.append(blank(DECODE_RUNS, **facts[name], **what, **timed))
                progress.step(f"{count} candidates, {name}")
            gone = [one for name, one in facts.items() if not any(name in each for each in groups)]
            rows += [blank(DECODE_RUNS, **what) | one for one in gone]
    return rows


def _turns(groups: Sequence[dict], warmup: int, repeats: int) -> Iterator[tuple[dict, int, str]]:
    """Of each group in rounds of its own: the group, the round (below 0: warm-up), and a name."""
    for calls in groups:
        for number, order in rounds(calls, range(-warmup, repeats)):
            yield from ((calls, number, name) for name in order)


def _times(engine, prompt, sampling, device: str, candidates: int) -> tuple[float, float]:
    """Milliseconds of the prompt's forward, and of a step with sampling."""
    clock = PhaseClock(device)
    engine.generate([prompt()], sampling, num_candidates=candidates, clock=clock)
    times, new_tokens = clock.times_ms(), sampling.max_tokens
    return times["prefill"], times["decode"] / (new_tokens - 1) + times["sampling"] / new_tokens


def _sharing(decoder):
    """Another decoder of the same tensors: what is packed in one of them takes no second copy."""
    tensors = (*decoder.parameters(), *decoder.buffers())
    return deepcopy(decoder, {id(tensor): tensor for tensor in tensors})
