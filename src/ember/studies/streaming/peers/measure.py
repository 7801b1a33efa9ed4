"""Streaming in other frameworks beside this project's, on the same tokens (S-1.7).

Every framework is a process of its own behind one protocol (`ember.peers`), this project runs here.
Losses first, of all streams; then times of one stream, all points in turns. What is not installed
is a skipped row, what crashes a failed one, and its process is started anew for the next point.
"""

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ember.measure.progress import Progress
from ember.model.gguf import BadGguf, export_gguf
from ember.peers.client import Peer, PeerFailed, PeerMissing, peer_of, versions_of
from ember.records.errors import EmberError
from ember.streaming import fast
from ember.streaming.build import build, point_id
from ember.streaming.stream import run
from ember.studies.measured import blank, in_order, in_turns, on_device
from ember.studies.steps import makes
from ember.studies.streaming.peers.tables import PEER_STREAMS, PEER_TIMES
from ember.studies.streaming.streams import cut_streams

log = logging.getLogger(__name__)

EMBER = "ember"
# This project's methods that others are by their definitions; tests say that they are.
LAZY, WINDOW = {"name": "lazy_prune"}, {"name": "window"}
EQUALS = {
    ("StreamingLLMPress", "order-fixed"): LAZY | {"absolute": True},
    ("StreamingLLMPress", "re-rotated"): LAZY,
    ("TOVAPress", "re-rotated"): {"name": "tova", "recent": 1},
    ("DynamicSlidingWindowLayer", "stock"): WINDOW,
    ("StaticSlidingWindowLayer", "stock"): WINDOW,
    ("context shift", "stock"): LAZY,
}
SINKS = ("StreamingLLMPress", "context shift")  # methods of others that keep the first tokens
TIMED = ("streaming_llm", "lazy_prune", "window")


@dataclass(frozen=True)
class Point:
    """A method of a framework with its budget; `spec`: the method of this project that it is."""

    framework: str
    method: str
    label: str
    peak: int
    compression_interval: int
    n_sink: int
    spec: Mapping | None = None
    arguments: Mapping = field(default_factory=dict)

    def columns(self, *more: str) -> dict:
        """What identifies the point, and more."""
        keys = ("framework", "method", "label", "peak", "compression_interval", *more)
        return {key: getattr(self, key) for key in keys}

    @property
    def prefill(self) -> int:
        """Tokens fed at once: as many as a prune leaves, so that the first comes at the peak."""
        return self.peak - self.compression_interval

    def __str__(self) -> str:
        return f"{self.framework}: {self.method}, {self.label}, R = {self.compression_interval}"


def points_of(frameworks: Mapping, budget: Mapping, n_sink: int) -> list[Point]:
    """Every method of every framework at its periods."""
    peak, found = budget["peak"], []
    periods = {"each": [1], "budget": budget["compression_interval"]}
    for name, framework in frameworks.items():
        for one in framework["methods"]:
            for period in periods[one["period"]]:
                at = (peak, period, n_sink if one["method"] in SINKS else 0)
                spec = _spec(EQUALS.get((one["method"], one["label"])), *at)
                found.append(Point(name, one["method"], one["label"], *at, spec, one["arguments"]))
    return found


def own_points(points: list[Point], n_sink: int) -> list[Point]:
    """This project's StreamingLLM at the same peak, lazy pruning at each period, and what others
    are; on the eager path."""
    peak = points[0].peak
    specs = [_spec({"name": "streaming_llm"}, peak, 1, n_sink)]
    periods = sorted({point.compression_interval for point in points} - {1})
    specs += [_spec(LAZY, peak, period, n_sink) for period in periods]
    specs += [point.spec for point in points if point.spec]
    specs = [spec for place, spec in enumerate(specs) if spec not in specs[:place]]
    methods = [(spec, build(spec)) for spec in specs]
    return [
        Point(EMBER, point_id(m), "eager", peak, m.compression_interval, m.n_sink, spec)
        for spec, m in methods
    ]


def _spec(kind: Mapping | None, peak: int, period: int, n_sink: int) -> dict | None:
    if kind is None or kind["name"] == "window":
        return kind and kind | {"peak": peak}
    prunes = {} if kind["name"] == "streaming_llm" else {"compression_interval": period}
    return {"n_sink": n_sink, "peak": peak} | prunes | kind


class Crew:
    """All that stream: this project here, frameworks in processes that are started when first asked
    and again after a failure."""

    def __init__(
        self, stack: ExitStack, frameworks: Mapping, setup: Mapping, decoder, timeout_s: float
    ):
        """`stack`: at its end processes do."""
        self.frameworks, self.setup, self.timeout_s = frameworks, setup, timeout_s
        self._stack, self.decoder = stack, decoder
        self._running: dict[str, tuple[Peer, dict]] = {}
        self._gone: dict[str, PeerMissing] = {}

    def stream(self, point: Point, texts: np.ndarray, timed: bool) -> dict:
        """`nll` (streams, tokens - 1) of a point, `ms` of each call, the prefill first, and columns
        that say what ran. Raises `PeerMissing`, `PeerFailed`."""
        if point.framework == EMBER:
            return self._here(point, texts, timed)
        peer, about = self._peer(point.framework)
        rows, found = about.pop("rows", None) or len(texts), []
        request = point.columns("n_sink", "prefill") | dict(point.arguments)
        del request["framework"]
        try:
            for first in range(0, len(texts), rows):
                found.append(peer.stream(texts[first : first + rows].tolist(), **request))
        except PeerFailed:
            peer.close()
            del self._running[point.framework]
            raise
        return {
            "nll": [losses for one in found for losses in one["nll"]],
            "ms": found[0]["ms"],
            "visible_max": max(max(one["visible"]) for one in found),
            **about,
        }

    def _here(self, point: Point, texts: np.ndarray, timed: bool) -> dict:
        import torch

        streams = fast.run if point.label == "fast" else run
        tokens = torch.from_numpy(texts).to(self.decoder.embed_tokens.weight.device)
        method = build(point.spec)
        found = streams(self.decoder, tokens, method, timed=timed, prefill=point.prefill)
        times = found.token_ms[found.prefilled :].tolist() if timed else []
        return {
            "nll": found.nll.tolist(),
            "ms": [found.prefill_ms, *times],
            "visible_max": int(found.visible.max()),
        }

    def _peer(self, name: str) -> tuple[Peer, dict]:
        if name in self._gone:
            raise self._gone[name]
        if name not in self._running:
            try:
                self._running[name] = self._start(name)
            except PeerMissing as error:
                self._gone[name] = error
                raise
        peer, ready = self._running[name]
        about = {"attention": ready["attention"], "rows": ready.get("rows")}
        return peer, about | {"version": versions_of(ready)}

    def _start(self, name: str) -> tuple[Peer, dict]:
        given = self.frameworks[name]
        shifts = given["adapter"] == "llama_cpp_shift"
        setup = {**self.setup, "gguf": self._gguf() if shifts else None}
        peer = self._stack.enter_context(peer_of(given, setup, self.timeout_s))
        return peer, peer.start()

    def _gguf(self) -> str:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
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
    own = own_points(points, n_sink)
    setup = {"model": str(Path(model).resolve()), "weights": "files"}
    setup |= {"device": device, "dtype": dtype, "threads": threads, "seed": seed}
    setup |= {"capacity": budget["peak"], "candidates": 1}
    scored, timed, able, lost = [], [], [], set()
    with ExitStack() as stack:
        crew = Crew(stack, frameworks, setup, decoder, timeout_s)
        progress = Progress(log, len(own) + len(points))
        for point in [*own, *points]:
            rows = _scored(crew, point, texts)
            scored += rows
            if rows[0]["status"] == "ok":
                able += _timed_as(point, decoder)
            progress.step(str(point))
        for turn, point in in_turns(able, warmup, repeats, seed, str, log):
            if str(point) not in lost:
                row = _timed(crew, point, texts[:1])
                lost |= {str(point)} if row["status"] != "ok" else set()
                if turn >= 0 or row["status"] != "ok":
                    timed.append(row | {"repeat": max(turn, 0)})
    return [row | about for row in scored], in_order([row | about for row in timed], PEER_TIMES)


def _timed_as(point: Point, decoder) -> list[Point]:
    """What of a point is timed: of this project the plain methods, on both paths."""
    if point.framework != EMBER:
        return [point]
    if point.spec["name"] not in TIMED or point.spec.get("absolute"):
        return []
    if reason := fast.unsupported_reason(build(point.spec), decoder):
        log.info("%s has no fast path: %s", point, reason)
        return [point]
    return [point, replace(point, label="fast")]


def _scored(crew: Crew, point: Point, texts: np.ndarray) -> list[dict]:
    """Rows of PEER_STREAMS, one a stream; of a point that does not run one that says why."""
    more = ", ".join(f"{name} {value}" for name, value in point.arguments.items())
    same = {"n_sink": point.n_sink, "arguments": more or None}
    same["equals"] = point_id(build(point.spec)) if point.spec else None
    same |= point.columns()
    try:
        found = crew.stream(point, texts, timed=False)
    except EmberError as error:
        return [blank(PEER_STREAMS, **same, stream=0, nll=[], **_why(point, error))]
    known = {name: found.get(name) for name in ("version", "attention", "visible_max")}
    return [
        blank(PEER_STREAMS, **same, **known, stream=n, nll=nll)
        for n, nll in enumerate(found["nll"])
    ]


def _timed(crew: Crew, point: Point, texts: np.ndarray) -> dict:
    """A row of PEER_TIMES."""
    same = point.columns("prefill")
    try:
        ms = crew.stream(point, texts, timed=True)["ms"]
    except EmberError as error:
        return blank(PEER_TIMES, **same, token_ms=[], **_why(point, error))
    return blank(PEER_TIMES, **same, token_ms=ms[1:])


def _why(point: Point, error: EmberError) -> dict:
    log.warning("%s: %s", point, error)
    missing = isinstance(error, PeerMissing)
    reason = str(error).splitlines()[0] + ("; make peers installs it" if missing else "")
    return {"status": "skipped" if missing else "failed", "reason": reason}
