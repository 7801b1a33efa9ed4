"""Points of the channel measured on a trained pair: models are held once, many points evaluated.

The sharer reads every text once. For each point what it made goes through the channel and the
receiver answers. Measured bytes are those of the blob that the wire makes; as its size follows from
shapes alone, one blob is made for each number of tokens and place that occurs.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ember.c2c.channel import Channel, channel_of, is_run, quantised_base
from ember.c2c.evaluate import Item, answer_items, batches, in_shards, share_items
from ember.c2c.pair import Pair, load_pair
from ember.c2c.select import SELECTORS
from ember.c2c.source import Context, Sent, SourceKV
from ember.c2c.wire import pack
from ember.measure.clock import PhaseClock
from ember.measure.device import resolve
from ember.measure.progress import Progress
from ember.optim.loop import state_key
from ember.studies.c2c.items import read_items
from ember.studies.c2c.point_tables import C2C_POINTS
from ember.studies.measured import measured_on
from ember.studies.steps import makes

log = logging.getLogger(__name__)

SHARD = 8  # points that a stopped run loses at most
COUNTED = ("tokens", "passage_tokens", "estimated_bytes", "measured_bytes", "charged_bytes")


@dataclass
class Bench:
    """A pair on its device, the questions of a split, and what the sharer made of them."""

    pair: Pair
    items: list[Item]
    sources: list[SourceKV]
    batch_size: int
    about: dict
    key: str

    @classmethod
    def of(
        cls,
        models: Sequence[str | Path],
        questions,
        split: str,
        family: str,
        world_seed: int,
        batch_size: int,
        limit: int | None,
        runtime: Mapping,
    ) -> "Bench":
        """models: folders of sharer, receiver and fuser."""
        device = resolve(runtime["device"])
        pair = load_pair(*models, device, getattr(torch, runtime["dtype"]))
        items = read_items(questions, split, limit)
        about = {
            "family": family,
            "world": world_seed,
            "split": split,
            "limited": limit is not None and len(items) == limit,
            **measured_on(models[1], device, runtime["dtype"]),
            "model": "c2c pair",
        }
        with torch.inference_mode():
            sources = list(share_items(pair, items, batch_size=batch_size))
        folders = [_modified(folder) for folder in models]
        key = state_key(about=about, models=folders, items=len(items), batch_size=batch_size)
        return cls(pair, items, sources, batch_size, about, key)

    def passages(self) -> list[Item]:
        """An item of each passage of the first batch."""
        return next(batches(self.items, self.batch_size, True)).prefixes

    def measure(self, points: Sequence[Mapping], shards: str | Path, code: str) -> list[dict]:
        """Rows of C2C_POINTS. Points that a stopped run has finished are read from `shards`."""
        key = state_key(bench=self.key, points=[dict(one) for one in points], code=code)
        progress = Progress(log, len(points))

        def some_rows(some: Sequence[Mapping]) -> list[dict]:
            rows = []
            for one in some:
                rows += measure_point(self, one)
                progress.step(one["point"])
            return rows

        rows = in_shards(points, SHARD, Path(shards), key, some_rows)
        shutil.rmtree(shards, ignore_errors=True)
        return rows


@makes(C2C_POINTS)
def measure_points(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    points: Sequence[Mapping],
    family: str,
    world_seed: int,
    batch_size: int,
    limit: int | None,
    shards: str | Path,
    runtime: Mapping,
    code: str = "",
) -> list[dict]:
    """Rows of C2C_POINTS: every point on the questions of the test split, by stratum."""
    models = (sharer, receiver, fuser)
    bench = Bench.of(models, questions, "test", family, world_seed, batch_size, limit, runtime)
    return bench.measure(points, shards, code)


def measure_point(bench: Bench, point: Mapping) -> list[dict]:
    """Rows of C2C_POINTS for one point, one for each stratum."""
    pair, items, sources, batch_size = bench.pair, bench.items, bench.sources, bench.batch_size
    clock = PhaseClock(pair.device)
    tally = Tally(channel_of(point, pair.fuser))
    with quantised_base(pair.fuser, point):
        rows = answer_items(
            pair,
            items,
            iter(sources),
            transmit=tally,
            batch_size=batch_size,
            # A base is quantised along whole passages.
            sparse=point["sparse_fuse"] and point["quantize_target"] == "source",
            clock=clock,
        )
    times, passages = clock.times_ms(), len({item.prefix for item in items})
    of_group = tally.by_item(items, batch_size)
    found = []
    for stratum in dict.fromkeys(row["stratum"] for row in rows):
        picked = [n for n, row in enumerate(rows) if row["stratum"] == stratum]
        means = torch.tensor([of_group[n] for n in picked], dtype=torch.float64).mean(0).tolist()
        found.append(
            {
                **bench.about,
                **point,
                **dict(zip(Tally.SAID, means, strict=True)),
                "stratum": stratum,
                "items": [rows[n]["item"] for n in picked],
                "groups": [items[n].group for n in picked],
                "correct": [int(rows[n]["correct"]) for n in picked],
                "nll": [-_log(rows[n]["right_odds"]) for n in picked],
                "elements": int(sources[0].token_bytes(1)),
                "channel_ms": times.get("transmit", 0.0) / passages,
                "fuse_ms": times.get("fuse", 0.0) / passages,
            }
        )
    return found


class Tally:
    """A channel that counts what each passage takes, as estimated and as measured."""

    SAID = (*COUNTED, "header_bytes")

    def __init__(self, channel: Channel):
        self.channel = channel
        self.sizes: dict[tuple, tuple[int, int]] = {}  # blob and header, by what sets their size
        self.passages: list[list[tuple[float, ...]]] = []  # batch by batch

    def __call__(self, source: SourceKV, context: Context) -> Sent:
        chosen = self.channel.choose(source, context)
        sent = self.channel.deliver(source, chosen, context)
        charged = 0
        if not self.channel.selection.all:
            charged = SELECTORS[self.channel.selection.mode].charged(context)
        rows, real = chosen.cpu(), source.tokens.sum(1).tolist()
        passages = []
        for n, row in enumerate(rows):
            index = row.nonzero()[:, 0]
            size, header = self._measured(source, chosen, n, index, real[n])
            fee = charged * real[n]
            passages.append((len(index), real[n], sent.bytes[n], size + fee, fee, header))
        self.passages.append(passages)
        return sent

    def _measured(
        self, source: SourceKV, chosen: Tensor, item: int, index: Tensor, real: int
    ) -> tuple[int, int]:
        """Bytes of an item's blob and of its header."""
        run = is_run(index)
        kind = (len(index), run, int(index[0]) if run and len(index) else 0, real)
        if kind not in self.sizes:
            payload = self.channel.payload(source, chosen, item)
            blob = pack(payload)
            self.sizes[kind] = (len(blob), len(blob) - payload.bytes)
        return self.sizes[kind]

    def by_item(self, items: Sequence[Item], batch_size: int) -> list[tuple[float, ...]]:
        """What each question's passage took."""
        found = []
        for number, start in enumerate(range(0, len(items), batch_size)):
            first: dict[tuple, int] = {}
            for item in items[start : start + batch_size]:
                place = first.setdefault(item.prefix, len(first))
                found.append(self.passages[number][place])
        return found


def _log(odds: float) -> float:
    return float(torch.tensor(max(odds, 1e-12)).log())


def _modified(folder: str | Path) -> list:
    return sorted((file.name, file.stat().st_mtime_ns) for file in Path(folder).iterdir())
