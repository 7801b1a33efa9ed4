"""Streaming in other frameworks beside this project's, on the same tokens (S-1.7).

Every framework is a process of its own behind one protocol (`ember.peers`), this project runs here.
Losses first, of all streams; then times of one stream, all points in turns. What is not installed
is a skipped row, what crashes a failed one, and its process is started anew for the next point.
"""

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ember.measure.progress import Progress
from ember.model.gguf import BadGguf, export_gguf
from ember.peers.client import Peer, PeerFailed, PeerMissing
from ember.records.errors import EmberError
from ember.records.provenance import source_root
from ember.studies.measured import blank, in_order, in_turns, on_device
from ember.studies.steps import makes
from ember.studies.streaming.peers.tables import PEER_STREAMS, PEER_TIMES
from ember.studies.streaming.streams import cut_streams

log = logging.getLogger(__name__)

EMBER = "ember"
# What methods of frameworks are by their definitions; tests say that they are.
EQUALS = {
    ("StreamingLLMPress", "order-fixed"): {"name": "lazy_prune", "absolute": True},
    ("StreamingLLMPress", "re-rotated"): {"name": "lazy_prune"},
    ("TOVAPress", "re-rotated"): {"name": "tova", "recent": 1},
    ("DynamicSlidingWindowLayer", "stock"): {"name": "window"},
    ("StaticSlidingWindowLayer", "stock"): {"name": "window"},
    ("context shift", "stock"): {"name": "lazy_prune"},
}
TIMED = ("streaming_llm", "lazy_prune", "window")  # of this project


@dataclass(frozen=True)
class Point:
    """A method of a framework with its budget."""

    framework: str
    method: str
    label: str
    peak: int
    compression_interval: int
    n_sink: int
    arguments: Mapping = field(default_factory=dict)
    equals: Mapping | None = None  # the spec of this project's method

    @property
    def id(self) -> str:
        return f"{self.framework}, {self.method} ({self.label}), R = {self.compression_interval}"

    @property
    def about(self) -> dict:
        """Columns that all of its rows share."""
        keys = ("framework", "method", "label", "peak", "compression_interval")
        return {key: getattr(self, key) for key in keys}

    @property
    def request(self) -> dict:
        """What the adapter is asked, tokens apart."""
        keys = ("method", "label", "peak", "compression_interval", "n_sink")
        found = {key: getattr(self, key) for key in keys} | dict(self.arguments)
        return found | {"prefill": self.peak - self.compression_interval}


def points_of(frameworks: Mapping, budget: Mapping, n_sink: int) -> list[Point]:
    """Every method of every framework at every period of the budget."""
    peak, found = budget["peak"], []
    half = {"each": [1], "budget": budget["compression_interval"], "half": [(peak - n_sink) // 2]}
    for name, framework in frameworks.items():
        for method in framework["methods"]:
            for period in half[method["period"]]:
                kind = EQUALS.get((method["method"], method["label"]))
                spec = None if kind is None else {**kind, "peak": peak}
                if kind and kind["name"] != "window":
                    spec["compression_interval"] = period
                if kind and kind["name"] == "lazy_prune":
                    spec["n_sink"] = n_sink
                found.append(
                    Point(
                        name,
                        method["method"],
                        method["label"],
                        peak,
                        period,
                        n_sink,
                        method["arguments"],
                        spec,
                    )
                )
    return found


class Crew:
    """The frameworks' processes, started when first asked, and again after a failure."""

    def __init__(self, frameworks: Mapping, setup: Mapping, timeout_s: float):
        self.frameworks, self.setup, self.timeout_s = frameworks, setup, timeout_s
        self._running: dict[str, tuple[Peer, dict]] = {}
        self._gone: dict[str, PeerMissing] = {}
        self._files = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for peer, _ready in self._running.values():
            peer.close()
        self._files.close()

    def ready(self, name: str) -> dict:
        """What a framework says of itself once it runs. Raises `PeerMissing`, `PeerFailed`."""
        if name in self._gone:
            raise self._gone[name]
        if name not in self._running:
            try:
                self._running[name] = self._start(name)
            except PeerMissing as error:
                self._gone[name] = error
                raise
        return self._running[name][1]

    def stream(self, point: Point, streams: list) -> dict:
        """Losses, times and lengths of a point; of one stream at a time where it takes no more."""
        rows = self.ready(point.framework).get("rows") or len(streams)
        peer, found = self._running[point.framework][0], []
        try:
            for first in range(0, len(streams), rows):
                found.append(peer.stream(streams[first : first + rows], **point.request))
        except PeerFailed:
            self._running.pop(point.framework)[0].close()
            raise
        return {
            "nll": [losses for run in found for losses in run["nll"]],
            "ms": found[0]["ms"],
            "visible_max": max(max(run["visible"]) for run in found),
        }

    def _start(self, name: str) -> tuple[Peer, dict]:
        given = self.frameworks[name]
        setup = dict(self.setup) | {"arguments": dict(given["arguments"])}
        if given["adapter"] == "llama_cpp_shift":
            setup["gguf"] = self._gguf()
        python = given["python"]
        peer = Peer(
            given["adapter"],
            None if python is None else source_root() / python,
            setup,
            timeout_s=self.timeout_s,
            environment=given["environment"],
        )
        try:
            return peer, peer.start()
        except EmberError:
            peer.close()
            raise

    def _gguf(self) -> str:
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory()))
        try:
            return str(export_gguf(self.setup["model"], None, folder / "model.gguf"))
        except BadGguf as error:
            raise PeerMissing(f"reads GGUF, and there is none: {error}") from None


@makes(PEER_STREAMS, PEER_TIMES)
def stream_peers(
    *,
    model: str | Path,
    long: str | Path,
    evaluated: Mapping,
    frameworks: Mapping[str, Mapping],
    budget: Mapping,
    n_sink: int,
    streams: int,
    tokens: int,
    timeout_s: float,
    warmup: int,
    repeats: int,
    threads: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of PEER_STREAMS and PEER_TIMES: the first `tokens` of the first `streams` of the quality
    study's long streams, scored, and the first of them timed."""
    device, decoder, about = on_device(model, device, dtype)
    texts = cut_streams(model, long, evaluated)[:streams, :tokens]
    points = points_of(frameworks, budget, n_sink)
    setup = {"model": str(Path(model).resolve()), "weights": "files", "gguf": None}
    setup |= {"device": device, "dtype": dtype, "threads": threads, "seed": seed, "candidates": 1}
    own = [_own(spec) for spec in own_specs(points, budget, n_sink)]
    scored, timed = [], []
    with Crew(frameworks, setup | {"capacity": budget["peak"]}, timeout_s) as crew:
        progress = Progress(log, len(own) + len(points))
        for method in own:
            scored += _scored_here(decoder, texts, method, about)
            progress.step(scored[-1]["method"])
        able = []
        for point in points:
            rows = _scored_there(crew, point, texts.tolist(), about)
            able += [point] * (rows[0]["status"] == "ok")
            scored += rows
            progress.step(point.id)
        subjects = {f"here, {name}": run for name, run in _timed_here(decoder, texts, own).items()}
        subjects |= {point.id: point for point in able}
        for turn, name in in_turns([*subjects], warmup, repeats, seed, str, log):
            row = _timed(crew, subjects[name], texts) | about
            if turn >= 0 or row["status"] != "ok":
                timed.append(blank(PEER_TIMES, **row) | {"repeat": max(turn, 0)})
            if row["status"] != "ok":
                subjects[name] = None
    return scored, in_order([row for row in timed if row["framework"]], PEER_TIMES)
