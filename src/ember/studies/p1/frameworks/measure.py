"""This engine beside other frameworks (P1-1.3): same prompts, lengths and greedy sampling.

Every framework, Ember too, is a process of its own behind one protocol (`ember.peers`), so that all
rows are made alike. They take turns: a round runs each of them once on the same prompt, beginning
with another one each time, and ratios are taken within rounds, because machines drift. What is not
installed is a skipped row, what crashes or runs out of time a failed one.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ember.measure.cost import step_bytes, step_tokens
from ember.measure.device import resolve
from ember.measure.progress import Progress
from ember.measure.statistics import leading_equal
from ember.measure.turns import rounds
from ember.peers.client import Peer, PeerFailed, PeerMissing
from ember.records.errors import EmberError
from ember.records.provenance import source_root
from ember.studies.measured import blank, measured_on
from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS
from ember.studies.p1.gates.gguf import exported
from ember.studies.steps import makes

log = logging.getLogger(__name__)

EMBER = "ember"


@dataclass(frozen=True)
class Ground:
    """What all frameworks of one point run on."""

    model: Path
    gguf: Path | None
    no_gguf: str | None  # why there is no GGUF file
    prompts: list[list[int]]


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
    """Rows of FRAMEWORK_RUNS: `repeats` rounds of every framework at every point.

    A point is `name`, `prompt_tokens`, `new_tokens` and, for a shape with random weights in place
    of `model`, `preset`; `frameworks` limits it to some, and with `needs` it is skipped as a whole
    unless that framework runs. `gguf` is the directory that the GGUF gate left.
    """
    device = resolve(device)
    rows = []
    for point in points:
        chosen = {name: peers[name] for name in point.get("frameworks") or peers}
        arch, about = _about(point, model, device, dtype)
        reason = _why_not(point, arch, peers, about, threads, timeout_s)
        if reason:
            rows += [_row(about, name, "skipped", reason) for name in chosen]
            continue
        with _ground(point, model, workload, gguf, repeats + warmup, seed) as ground:
            found = _run_point(ground, about, chosen, repeats, warmup, timeout_s, threads, seed)
            order = list(chosen)
            rows += sorted(found, key=lambda row: (order.index(row["framework"]), row["repeat"]))
    return rows


def why_not_installed(framework: Mapping, *, threads: int, timeout_s: float) -> str | None:
    """Why a framework cannot be imported; None where it can (or fails at something else)."""
    setup = {"threads": threads, "arguments": {}}
    try:
        with Peer(framework["adapter"], _python(framework), setup, timeout_s=timeout_s) as peer:
            peer.probe()
    except PeerMissing as error:
        return str(error).splitlines()[0]
    except PeerFailed:
        return None
    return None


def _python(framework: Mapping) -> Path | None:
    """The framework's interpreter; relative paths start at this checkout."""
    given = framework.get("python")
    return None if given is None else source_root() / given


def _not_run(about: dict, framework: str, error: EmberError) -> dict:
    status = "skipped" if isinstance(error, PeerMissing) else "failed"
    return _row(about, framework, status, str(error).splitlines()[0])


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
        "batch": 1,
        "step_bytes": sum(step_bytes(arch, getattr(torch, dtype).itemsize, tokens)),
        **about,
        "evidence": "measured",
    }


def _read_bandwidth(device: str) -> float:
    """GB/s; the buffers are given back, so that the frameworks find the device empty."""
    import torch

    from ember.measure.roofline import matvec_bandwidth_gb_s, read_bandwidth_gb_s

    ways = (read_bandwidth_gb_s, matvec_bandwidth_gb_s)
    found = max(measure(device, repeats=5) for measure in ways)
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
def _ground(point: Mapping, model, workload, gguf, rounds: int, seed: int) -> Iterator[Ground]:
    """Model, GGUF and prompts of a point; a shape's are made in a folder that goes with it."""
    from ember.studies.p1.workload.make import make_workload, read_workload

    length = point["prompt_tokens"]
    if not point.get("preset"):
        file, reason = exported(gguf)
        prompts = _prompts(read_workload(workload), length, rounds, seed)
        yield Ground(Path(model), file, reason, prompts)
        return
    with tempfile.TemporaryDirectory(prefix="ember-frameworks-") as name:
        folder = materialise(point["preset"], Path(name), seed)
        rows = make_workload(model=folder, documents=rounds, tokens=length, seed=seed)
        prompts = _prompts(read_workload(rows), length, rounds, seed)
        yield Ground(folder, Path(name) / "model.gguf", None, prompts)


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


def _prompts(streams, length: int, rounds: int, seed: int) -> list[list[int]]:
    count = len(streams.documents)
    return [streams.prompt((seed + turn) % count, length, 0) for turn in range(rounds)]


def _run_point(
    ground: Ground,
    about: dict,
    chosen: Mapping[str, Mapping],
    repeats: int,
    warmup: int,
    timeout_s: float,
    threads: int,
    seed: int,
) -> list[dict]:
    """All rounds of one point; a framework that fails drops out with a failed row."""
    from ember.model.folder import weight_files

    files = bool(weight_files(ground.model))
    digest = None
    if ground.gguf is not None:
        with ground.gguf.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    setup = {
        "model": str(ground.model.resolve()),
        "weights": "files" if files else "random",
        "gguf": ground.gguf and str(ground.gguf.resolve()),
        "device": about["device"],
        "dtype": about["dtype"],
        "threads": threads,
        "seed": seed,
        "capacity": about["prompt_tokens"] + about["generated_tokens"],
        "temperature": 0,
    }
    rows, facts = [], {}
    about = about | {"load_before": os.getloadavg()[0]}
    bandwidths = [_read_bandwidth(about["device"])]
    with ExitStack() as stack:
        running: dict[str, Peer] = {}
        for name, framework in chosen.items():
            log.info("%s: starting %s", about["point"], name)
            try:
                found = _start(stack, framework, setup, ground, digest, timeout_s)
                running[name], facts[name] = found
            except (PeerMissing, PeerFailed) as error:
                rows.append(_not_run(about, name, error))
        progress = Progress(log, len(running) * (warmup + repeats))
        for turn, order in rounds(running, range(-warmup, repeats)):
            timed = {}
            for name in order:
                try:
                    prompt = ground.prompts[turn + warmup]
                    timed[name] = running[name].generate(prompt, about["generated_tokens"])
                except PeerFailed as error:
                    running.pop(name).close()
                    failed = _not_run(about, name, error) | {"repeat": max(turn, 0)}
                    rows.append(failed | facts[name])
                else:
                    if facts[name]["first_run_s"] is None:
                        facts[name]["first_run_s"] = timed[name]["total_s"] if warmup else None
                progress.step(f"{about['point']}: {name}")
            if turn >= 0:
                rows += _round(about, facts, timed, turn)
                bandwidths.append(_read_bandwidth(about["device"]))
    limit = _limit(about["step_bytes"], about["device"], bandwidths)
    return [row | limit for row in rows]


def _start(
    stack: ExitStack,
    framework: Mapping,
    setup: dict,
    ground: Ground,
    digest: str | None,
    timeout_s: float,
) -> tuple[Peer, dict]:
    """A framework that has loaded the model, and what its rows say of it."""
    reads_gguf = framework["adapter"] == "llama_cpp_decode"
    if reads_gguf and ground.gguf is None:
        raise PeerMissing(f"reads GGUF, and there is none: {ground.no_gguf}\nsee docs/peers.md")
    peer = Peer(
        framework["adapter"],
        _python(framework),
        setup | {"arguments": dict(framework.get("arguments") or {})},
        timeout_s=timeout_s,
    )
    ready = stack.enter_context(peer).start()
    files = setup["weights"] == "files"
    return peer, {
        "versions": ", ".join(f"{name} {version}" for name, version in ready["versions"].items()),
        "weights_format": ready.get("weights_format", "safetensors" if files else "drawn"),
        "gguf_sha256": digest if reads_gguf else None,
        "decode_threads": ready.get("decode_threads"),
        "same_weights": files or framework["adapter"].startswith("ember_"),
        "load_s": ready["load_s"],
        "first_run_s": None,
        **{name: ready[name] for name in ("threads", "kv_cache", "kv_dtype", "ttft_until")},
    }


def _round(about: dict, facts: dict, timed: dict[str, dict], turn: int) -> list[dict]:
    """The rows of one round, with ratios to Ember's run in it."""
    ember, rows = timed.get(EMBER), []
    for name, run in timed.items():
        row = _row(about, name) | facts[name] | {"repeat": turn}
        row["decode_threads"] = run.get("decode_threads", row["decode_threads"])
        decode_s, steps = run["total_s"] - run["ttft_s"], about["generated_tokens"] - 1
        row["ttft_ms"], row["decode_ms"] = run["ttft_s"] * 1e3, decode_s * 1e3
        row["total_ms"], row["tpot_ms"] = run["total_s"] * 1e3, decode_s * 1e3 / steps
        row["decode_tokens_per_s"] = steps / decode_s
        row["total_tokens_per_s"] = about["generated_tokens"] / run["total_s"]
        if ember is not None:
            row["ember_ratio"] = decode_s / (ember["total_s"] - ember["ttft_s"])
            if row["same_weights"]:
                row["tokens_equal_share"] = leading_equal(run["tokens"], ember["tokens"])
        rows.append(row)
    return rows


def _row(about: dict, framework: str, status: str = "ok", reason: str | None = None) -> dict:
    outcome = {"status": status, "reason": reason}
    return blank(FRAMEWORK_RUNS, **about, framework=framework, repeat=0, **outcome)
