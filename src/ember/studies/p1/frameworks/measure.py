"""This engine beside other frameworks (P1-1.3): same prompts, lengths and sampling.

Two workloads: one rollout (a prompt, greedy), and the loop's (a round's prompts and candidates at
temperature 1). Every framework, Ember too, is a process of its own behind one protocol
(`ember.peers`), so that all rows are made alike. They take turns: a round runs each of them once on
the same prompts, beginning with another one each time, and ratios are taken within rounds, because
machines drift. A run is two calls, on prompts that no call before had: one token of every
candidate, then all tokens. What is not installed is a skipped row, what crashes or runs out of time
a failed one.
"""

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ember.measure.cost import step_bytes, step_tokens
from ember.measure.device import resolve
from ember.measure.progress import Progress
from ember.measure.statistics import leading_equal
from ember.measure.turns import rounds
from ember.peers.client import Peer, PeerFailed, PeerMissing, peer_of, versions_of
from ember.records.errors import EmberError
from ember.records.provenance import digest
from ember.studies.measured import blank, measured_on
from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS
from ember.studies.p1.gates.gguf import exported
from ember.studies.p1.workload.make import Workload, WorkloadTooSmall, make_workload, read_workload
from ember.studies.steps import makes

log = logging.getLogger(__name__)

EMBER = "ember"
LEFT_OUT = "left out of this workload by p1.frameworks.points"
TTFT_BY = "a call of one token, wall clock"


@dataclass(frozen=True)
class Ground:
    """What all frameworks of one point run on."""

    model: Path
    gguf: Path | None
    no_gguf: str | None  # why there is no GGUF file
    streams: Workload


@dataclass(frozen=True)
class Load:
    """One of a point's workloads."""

    name: str
    prompts: int
    candidates: int
    temperature: float
    warmup: int  # rounds
    fewer: Mapping[str, int] = field(default_factory=dict)  # prompts, by framework

    def about(self, framework: str) -> dict:
        """The columns that say it of a framework's rows."""
        prompts = min(self.prompts, self.fewer.get(framework) or self.prompts)
        return {"workload": self.name, "prompts": prompts, "candidates": self.candidates}


def loads(point: Mapping, warmup: int) -> list[Load]:
    """One rollout and, where the point says so, the loop's workload."""
    found = [Load("rollout", 1, 1, 0.0, warmup)]
    if loop := point.get("loop"):  # a single call of it brings every batch that will come
        sizes = (loop["prompts"], loop["candidates"])
        found.append(Load("loop", *sizes, 1.0, min(warmup, 1), loop.get("fewer") or {}))
    return found


@makes(FRAMEWORK_RUNS)
def compare_frameworks(
    *,
    model: str | Path,
    workload: str | Path,
    gguf: str | Path,
    points: Sequence[Mapping],
    peers: Mapping[str, Mapping],
    repeats: int,
    warmup: int,
    timeout_s: float,
    threads: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of FRAMEWORK_RUNS: `repeats` rounds of every framework at every point and workload.

    A point is `name`, `prompt_tokens`, `new_tokens` and, for a shape with random weights in place
    of `model`, `preset`; with `loop` the loop's workload is run too. `frameworks` limits it to
    some, and with `needs` it is skipped as a whole unless that framework runs. `gguf` is the
    directory that the GGUF gate left.
    """
    device = resolve(device)
    rows = []
    for point in points:
        chosen = {name: peers[name] for name in point.get("frameworks") or peers}
        arch, about = _about(point, model, device, dtype)
        reason = _why_not(point, arch, peers, about, threads, timeout_s)
        work = loads(point, warmup)
        if reason:
            rows += [_row(about, load, name, "skipped", reason) for load in work for name in chosen]
            continue
        with _ground(point, model, workload, gguf, seed) as ground:
            found = _run_point(ground, about, work, chosen, repeats, timeout_s, threads, seed)
        places = [(load.name, name) for load in work for name in chosen]
        rows += sorted(
            found,
            key=lambda row: (places.index((row["workload"], row["framework"])), row["repeat"]),
        )
    return rows


def why_not_installed(framework: Mapping, *, threads: int, timeout_s: float) -> str | None:
    """Why a framework cannot be imported; None where it can (or fails at something else)."""
    try:
        with peer_of(framework, {"threads": threads}, timeout_s) as peer:
            peer.probe()
    except PeerMissing as error:
        return str(error).splitlines()[0]
    except PeerFailed:
        return None
    return None


def _not_run(about: dict, load: Load, framework: str, error: EmberError) -> dict:
    status = "skipped" if isinstance(error, PeerMissing) else "failed"
    return _row(about, load, framework, status, str(error).splitlines()[0])


def _about(point: Mapping, model, device: str, dtype: str):
    """Architecture of a point's model, and the columns that all of its rows share."""
    import torch

    from ember.model.architecture import Architecture
    from ember.model.folder import read_architecture

    preset = point.get("preset")
    about = {"device": device, "dtype": dtype, "model": preset, "weights": "random"}
    if preset:
        arch = Architecture.make(preset)
    else:
        arch, about = read_architecture(model), measured_on(model, device, dtype)
    tokens = step_tokens(point["prompt_tokens"], 1, point["new_tokens"])
    return arch, {
        "point": point["name"],
        "prompt_tokens": point["prompt_tokens"],
        "generated_tokens": point["new_tokens"],
        "ttft_by": TTFT_BY,
        "step_bytes": sum(step_bytes(arch, getattr(torch, dtype).itemsize, tokens)),
        **about,
        "evidence": "measured",
    }


def _read_bandwidth(device: str) -> float:
    """GB/s; the buffers are given back, so that the frameworks find the device empty."""
    import torch

    from ember.measure.roofline import best_read_gb_s

    found = best_read_gb_s(device, repeats=5)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


def _limit(needed: int, device: str, bandwidths: Sequence[float]) -> dict:
    """Columns of the read bandwidth: the best found, since others may have been at work too."""
    from ember.measure.roofline import last_cache_bytes

    best, cache = max(bandwidths), last_cache_bytes(device)
    bound = cache is None or needed > cache
    limit = best * 1e9 / needed if bound else None
    return {"read_gb_s": best, "limit_tokens_per_s": limit}


def _why_not(
    point: Mapping, arch, frameworks: Mapping, about: dict, threads: int, timeout_s: float
) -> str | None:
    """Why a point cannot be measured here at all."""
    from ember.measure.memory import available_bytes

    if needed := point.get("needs"):
        reason = why_not_installed(frameworks[needed], threads=threads, timeout_s=timeout_s)
        if reason:
            return f"compares with {needed}: {reason}"
    if point.get("preset") and about["device"] == "cpu":
        # A copy of the weights for each framework, the page cache's, and the writer's.
        wanted = (len(point.get("frameworks") or frameworks) + 2) * 4 * arch.parameter_count()
        if wanted > (there := available_bytes()):
            return f"needs about {wanted / 1e9:.0f} GB of memory, {there / 1e9:.0f} are available"
    return None


@contextmanager
def _ground(point: Mapping, model, workload, gguf, seed: int) -> Iterator[Ground]:
    """Model, GGUF and texts of a point; a shape's are made in a folder that goes with it."""
    if not point.get("preset"):
        yield Ground(Path(model), *exported(gguf), read_workload(workload))
        return
    with tempfile.TemporaryDirectory(prefix="ember-frameworks-") as name:
        folder = materialise(point["preset"], Path(name), seed)
        length = point["prompt_tokens"]
        rows = make_workload(model=folder, documents=8, tokens=length, seed=seed)
        yield Ground(folder, Path(name) / "model.gguf", None, read_workload(rows))


def materialise(preset: str, folder: Path, seed: int) -> Path:
    """Writes a shape with random weights as safetensors and, from the same weights, as GGUF.

    `folder`/PRESET is the model directory, `folder`/model.gguf the other; both float32.
    """
    from ember.model.architecture import Architecture
    from ember.model.checkpoint import random_decoder, save_decoder
    from ember.model.gguf import export_gguf

    log.info("writing %s with random weights to %s", preset, folder)
    decoder = random_decoder(Architecture.make(preset), seed)
    made = save_decoder(decoder, folder / preset, weights="random")
    export_gguf(made, None, folder / "model.gguf")
    return made


def fresh_prompts(streams: Workload, length: int, count: int) -> Iterator[list[int]]:
    """`count` prompts of `length` ids of which none has a prefix cache's block in common.

    The documents from their beginnings, then again from later on; what runs out of a document goes
    on with its beginning. Raises WorkloadTooSmall.
    """
    documents = streams.documents
    shortest = min(map(len, documents))
    turns = -(-count // len(documents))
    if length > shortest or turns > shortest:
        raise WorkloadTooSmall(
            f"{count} prompts of {length} tokens are wanted of {len(documents)} documents of "
            f"{shortest}\nmake the workload again with more documents"
        )
    for number in range(count):
        turn, document = divmod(number, len(documents))
        start = turn * (shortest // turns)
        yield np.roll(documents[document], -start)[:length].tolist()


def _run_point(
    ground: Ground,
    about: dict,
    work: Sequence[Load],
    chosen: Mapping[str, Mapping],
    repeats: int,
    timeout_s: float,
    threads: int,
    seed: int,
) -> list[dict]:
    """All rounds of one point; a framework that fails drops out with a failed row."""
    from ember.model.folder import weight_files

    files = bool(weight_files(ground.model))
    sha256 = ground.gguf and digest(ground.gguf)[0]
    setup = {
        "model": str(ground.model.resolve()),
        "weights": "files" if files else "random",
        "gguf": ground.gguf and str(ground.gguf.resolve()),
        "device": about["device"],
        "dtype": about["dtype"],
        "threads": threads,
        "seed": seed,
        "capacity": about["prompt_tokens"] + about["generated_tokens"],
        "candidates": max(load.candidates for load in work),
    }
    rows, facts, gone = [], {}, {}
    about = about | {"load_before": os.getloadavg()[0]}
    wanted = sum(2 * load.prompts * (load.warmup + repeats) for load in work)
    prompts = fresh_prompts(ground.streams, about["prompt_tokens"], wanted)
    with ExitStack() as stack:
        running: dict[str, Peer] = {}
        for name, framework in chosen.items():
            log.info("%s: starting %s", about["point"], name)
            try:
                found = _start(stack, framework, setup, ground, sha256, timeout_s)
                running[name], facts[name] = found
            except (PeerMissing, PeerFailed) as error:
                gone[name] = error
        for load in work:
            rows += [_not_run(about, load, name, error) for name, error in gone.items()]
            out = [name for name in running if load.fewer.get(name) == 0]
            rows += [_row(about, load, name, "skipped", LEFT_OUT) | facts[name] for name in out]
            there = {name: peer for name, peer in running.items() if name not in out}
            rows += _run_load(about, load, there, facts, prompts, repeats, gone)
            running = {name: peer for name, peer in running.items() if name not in gone}
    return rows


def _run_load(
    about: dict,
    load: Load,
    running: dict[str, Peer],
    facts: dict[str, dict],
    prompts: Iterator[list[int]],
    repeats: int,
    gone: dict[str, EmberError],
) -> list[dict]:
    """All rounds of one workload; who fails leaves `running` for `gone`."""
    rows, bandwidths, single = [], [], load.name == "rollout"
    if single:
        bandwidths.append(_read_bandwidth(about["device"]))
    progress = Progress(log, len(running) * (load.warmup + repeats))
    for turn, order in rounds(running, range(-load.warmup, repeats)):
        first, whole = (list(itertools.islice(prompts, load.prompts)) for _ in range(2))
        timed = {}
        for place, name in enumerate(order):
            try:
                run = _run_once(running[name], load, name, first, whole, about["generated_tokens"])
            except PeerFailed as error:
                running.pop(name).close()
                gone[name] = error
                failed = _not_run(about, load, name, error) | {"repeat": max(turn, 0)}
                rows.append(failed | facts[name])
            else:
                timed[name] = run | {"place": place}
                if single and turn == -load.warmup < 0:
                    facts[name]["first_run_s"] = run["ttft_s"] + run["total_s"]
            progress.step(f"{about['point']}, {load.name}: {name}")
        if turn >= 0:
            rows += _round(about, load, facts, timed, turn)
            if single:
                bandwidths.append(_read_bandwidth(about["device"]))
    if not single:  # a step of the loop reads as many rows' KV as the framework runs together
        return [row | {"step_bytes": None} for row in rows]
    limit = _limit(about["step_bytes"], about["device"], bandwidths)
    return [row | limit for row in rows]


def _run_once(peer: Peer, load: Load, name: str, first, whole, new_tokens: int) -> dict:
    """One token of every candidate of `first`, then all tokens of `whole`."""
    count = load.about(name)["prompts"]
    how = {"candidates": load.candidates, "temperature": load.temperature}
    ttft_s = peer.generate(first[:count], 1, **how)["total_s"]
    return peer.generate(whole[:count], new_tokens, **how) | {"ttft_s": ttft_s}


def _start(
    stack: ExitStack,
    framework: Mapping,
    setup: dict,
    ground: Ground,
    gguf_sha256: str | None,
    timeout_s: float,
) -> tuple[Peer, dict]:
    """A framework that has loaded the model, and what its rows say of it."""
    reads_gguf = framework["adapter"] == "llama_cpp_decode"
    if reads_gguf and ground.gguf is None:
        raise PeerMissing(f"reads GGUF, and there is none: {ground.no_gguf}\nsee docs/peers.md")
    peer = stack.enter_context(peer_of(framework, setup, timeout_s))
    ready = peer.start()
    files = setup["weights"] == "files"
    return peer, {
        "versions": versions_of(ready),
        "weights_format": ready.get("weights_format", "safetensors" if files else "drawn"),
        "gguf_sha256": gguf_sha256 if reads_gguf else None,
        "decode_threads": ready.get("decode_threads"),
        "same_weights": files or framework["adapter"].startswith("ember_"),
        "load_s": ready["load_s"],
        "first_run_s": None,
        **{
            name: ready[name]
            for name in ("threads", "attention", "kv_cache", "kv_dtype", "prompt_kv")
        },
    }


def _round(about: dict, load: Load, facts: dict, timed: dict[str, dict], turn: int) -> list[dict]:
    """The rows of one round, with ratios to Ember's run in it."""
    rows, steps = {}, about["generated_tokens"] - 1
    for name, run in timed.items():
        row = rows[name] = _row(about, load, name) | facts[name]
        row |= {"repeat": turn, "place": run["place"]}
        row["decode_threads"] = run.get("decode_threads", row["decode_threads"])
        row["ttft_ms"], row["total_ms"] = run["ttft_s"] * 1e3, run["total_s"] * 1e3
        row["ttft_per_prompt_ms"] = row["ttft_ms"] / row["prompts"]
        generated = row["prompts"] * row["candidates"] * about["generated_tokens"]
        row["total_tokens_per_s"] = generated / run["total_s"]
        decode_ms = row["total_ms"] - row["ttft_ms"]
        # The loop's prompts are run while others decode. Two short calls may differ by chance.
        if load.name == "rollout" and decode_ms > 0:
            row["tpot_ms"], row["decode_tokens_per_s"] = decode_ms / steps, steps / decode_ms * 1e3
    if EMBER in rows:
        speed = "decode_tokens_per_s" if load.name == "rollout" else "total_tokens_per_s"
        for name, row in rows.items():
            if row[speed] and rows[EMBER][speed]:
                row["ember_ratio"] = rows[EMBER][speed] / row[speed]
            if row["same_weights"] and load.temperature == 0:
                pair = (timed[one]["tokens"][0][0] for one in (name, EMBER))
                row["tokens_equal_share"] = leading_equal(*pair)
    return list(rows.values())


def _row(
    about: dict, load: Load, framework: str, status: str = "ok", reason: str | None = None
) -> dict:
    outcome = {"repeat": 0, "place": 0, "status": status, "reason": reason}
    return blank(FRAMEWORK_RUNS, **about, **load.about(framework), framework=framework, **outcome)
