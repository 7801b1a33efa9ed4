"""Blobs of real and of large payloads: bytes, times, a local socket, and what text takes (C-M11).

Making a blob has two steps. Quantising reads the values and writes codes and scales; the memory's
copy bandwidth, measured in the same run, bounds it. Packing gathers them into one buffer, copies it
to the host, checks and sums it. Reading is the same backwards.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ember.c2c import wire
from ember.c2c.channel import Payload, part_of
from ember.c2c.evaluate import share_items
from ember.c2c.fuse import fuse
from ember.c2c.pair import Pair, Reader, load_pair, read
from ember.c2c.source import SourceKV
from ember.formats.axes import Along
from ember.measure.clock import repeat, timed
from ember.measure.device import resolve
from ember.measure.memory import require
from ember.measure.progress import Progress
from ember.measure.roofline import copy_bandwidth_gb_s, last_cache_bytes
from ember.records.errors import EmberError
from ember.studies.c2c.items import read_items
from ember.studies.c2c.wire.peer import Link, linked
from ember.studies.c2c.wire.tables import WIRE_BLOBS, WIRE_STAGES
from ember.studies.measured import machine
from ember.studies.steps import makes

log = logging.getLogger(__name__)

PUBLISHED = (24, 2, 64)  # layers, KV heads and head dimension of Qwen2.5-0.5B
WIDE = (1, 8, 128)  # of the big payload: two tensors, as large as they can be


class NotArrived(EmberError):
    """A blob that came out of the socket or of `unpack` as another."""


@dataclass(frozen=True)
class KV:
    """Keys and values of layers, (n, H, D) each."""

    name: str
    pairs: Sequence[tuple[Tensor, Tensor]]
    layers: tuple[int, ...]
    rotated: bool

    @property
    def tensors(self) -> list[Tensor]:
        return [x for pair in self.pairs for x in pair]

    def payload(self, along: Along) -> Payload:
        """All tokens, as one scheme says."""
        keys, values = (tuple(part_of(pair[side], along) for pair in self.pairs) for side in (0, 1))
        tokens = len(self.tensors[0])
        return Payload(tokens, 0, None, self.layers, keys, values, self.rotated)


@makes(WIRE_BLOBS, WIRE_STAGES)
def measure_wire(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions: str | Path,
    schemes: Sequence[str],
    published_tokens: int,
    big_mb: float,
    text_tokens: int,
    text_bytes: int,
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of WIRE_BLOBS and WIRE_STAGES. Every scheme has a scale for each token."""
    device, kind = resolve(device), getattr(torch, dtype)
    about = machine(receiver, device, dtype) | {"model": "c2c pair"}
    copy_gb_s = copy_bandwidth_gb_s(device)
    pair = load_pair(sharer, receiver, fuser, device, kind)
    with torch.inference_mode(), linked() as link:
        source = next(share_items(pair, read_items(questions, "test", 1), batch_size=1))
        pairs = [(k[0], v[0]) for k, v in zip(source.keys, source.values, strict=True)]
        payloads = [
            KV("pair", pairs, source.layers, source.rotated),
            _random("published", *PUBLISHED, published_tokens, device, kind, seed),
            _random("big", *WIDE, _tokens(big_mb, WIDE), device, kind, seed),
        ]
        progress = Progress(log, len(payloads) * len(schemes))
        blobs = []
        for kv in payloads:
            for scheme in schemes:
                found = _blob(kv, Along(scheme), link, warmup, repeats, device, copy_gb_s)
                weights = about["weights"] if kv.name == "pair" else "random"
                blobs += [row | about | {"weights": weights} for row in found]
                progress.step(f"{kv.name} in {scheme}")
        stages = _stages(pair, source, text_tokens, link, warmup, repeats)
    text = {"text_tokens": text_tokens, "text_bytes": text_bytes}
    return blobs, [row | text | about for row in stages]


def _random(name, layers, heads, size, tokens, device, dtype, seed) -> KV:
    require(20 * layers * heads * size * tokens, device, f"the {name} payload")
    generator = torch.Generator(device).manual_seed(seed)

    def drawn() -> Tensor:
        shape = (tokens, heads, size)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    return KV(name, [(drawn(), drawn()) for _ in range(layers)], tuple(range(layers)), True)


def _tokens(megabytes: float, shape: tuple[int, int, int]) -> int:
    layers, heads, size = shape
    return max(1, min(round(megabytes * 1e6 / (4 * layers * heads * size)), wire.MOST_LENGTH))


def _blob(
    kv: KV, along: Along, link: Link, warmup: int, repeats: int, device: str, copy_gb_s: float
) -> list[dict]:
    """Rows of one payload in one scheme, but for what they all say."""
    tensors = kv.tensors
    payload = kv.payload(along)
    blob = wire.pack(payload)
    parts = (*payload.keys, *payload.values)
    _check(payload, wire.unpack(blob, device))
    times = {"warmup": warmup, "repeats": repeats}
    ms = {
        "quantise_ms": repeat(lambda: [along.pack(x) for x in tensors], device=device, **times),
        "pack_ms": _host(lambda: wire.pack_buffer(payload), device, **times),
        "unpack_ms": _host(lambda: wire.unpack(blob, device), device, **times),
        "dequantise_ms": repeat(
            lambda: [along.unpack(one.codes, one.parts, one.shape) for one in parts],
            device=device,
            **times,
        ),
        "socket_ms": _sent(blob, link, **times),
    }
    values = sum(x.numel() for x in tensors)
    moved = 2 * values + payload.bytes
    cache = last_cache_bytes(device)
    said = wire.inspect(blob)
    sizes = {f"{name}_bytes": said[f"{name}_bytes"] for name in ("header", "codes", "scales")}
    fixed = {
        "payload": kv.name,
        "scheme": along.scheme,
        "axis": along.axis,
        "layers": len(kv.layers),
        "tokens": payload.tokens,
        "source_bytes": 2 * values,
        "estimated_bytes": payload.bytes,
        "indices_bytes": said["indices_bytes"],
        **sizes,
        "blob_bytes": len(blob),
        "copy_gb_s": copy_gb_s,
        "limit_ms": moved / copy_gb_s / 1e6,
        "limit_kind": "cache" if cache and moved <= cache else "memory",
    }
    return [
        fixed | {"repeat": n} | {name: samples[n] for name, samples in ms.items()}
        for n in range(repeats)
    ]


def _check(payload: Payload, again: Payload) -> None:
    """Raises NotArrived unless every byte came back."""
    pairs = zip((*payload.keys, *payload.values), (*again.keys, *again.values), strict=True)
    for one, other in pairs:
        same = torch.equal(one.codes, other.codes) and all(
            torch.equal(one.parts[name], other.parts[name]) for name in one.parts
        )
        if not same:
            raise NotArrived(f"{one.scheme} did not come back as it was packed\nreport a bug")


def _host(call, device: str, *, warmup: int, repeats: int) -> list[float]:
    """Milliseconds by the host's clock, whose work most of it is."""
    for _ in range(warmup):
        call()
    return [timed(call, device)[0] for _ in range(repeats)]


def _sent(blob: bytes, link: Link, *, warmup: int, repeats: int) -> list[float]:
    """Milliseconds until the other process has all; what it has is compared afterwards."""
    samples, wanted = [], zlib.crc32(blob)
    for number in range(warmup + repeats):
        ms, _ = timed(lambda: link.send(blob))
        if link.arrived() != wanted:
            raise NotArrived("the socket gave another blob than was sent\nreport a bug")
        samples += [ms] if number >= warmup else []
    return samples


def _stages(
    pair: Pair, source: SourceKV, tokens: int, link: Link, warmup: int, repeats: int
) -> list[dict]:
    """Rows of WIRE_STAGES: what text takes (generating and reading), and what the channel does."""
    device = str(pair.device)
    own = _own(pair, source)
    mask = torch.ones_like(source.tokens)
    calls = {
        "generate": lambda: _generate(pair.sharer, source.tokens.shape[1], tokens),
        "read": lambda: _read_more(pair.receiver, source.tokens.shape[1], tokens),
        "fuse": lambda: timed(lambda: fuse(pair.fuser, own, source, mask), device)[0],
    }
    rows = []
    for stage, call in calls.items():
        samples = [call() for _ in range(warmup + repeats)][warmup:]
        rows += [{"stage": stage, "repeat": n, "ms": ms} for n, ms in enumerate(samples)]
    pings = _sent(b"\0", link, warmup=warmup, repeats=repeats)
    return rows + [{"stage": "ping", "repeat": n, "ms": ms} for n, ms in enumerate(pings)]


def _own(pair: Pair, source: SourceKV) -> list:
    """The receiver's own KV of a passage as long as the source's."""
    length = source.tokens.shape[1]
    tokens = torch.zeros(1, length, dtype=torch.long, device=pair.device)
    return read(pair.receiver, tokens, pair.fuser.rotated).section(0, length)


def _generate(reader: Reader, context: int, count: int) -> float:
    """Milliseconds of `count` greedy tokens after a context that was read before."""
    tokens = torch.zeros(1, context, dtype=torch.long, device=reader.device)
    cache = read(reader, tokens[:, :-1], True)  # the last of them is the first step's

    def steps() -> None:
        text = tokens[:, -3:]
        for _ in range(count):
            hidden = reader.decoder(hidden=reader.embed(text)[:, -1:], cache=cache)
            token = reader.decoder.logits(hidden[:, -1]).argmax(-1)[:, None]
            text = torch.cat([text, token], 1)[:, -3:]

    return timed(steps, str(reader.device))[0]


def _read_more(reader: Reader, context: int, count: int) -> float:
    """Milliseconds of reading `count` tokens after a context that was read before."""
    tokens = torch.zeros(1, context, dtype=torch.long, device=reader.device)
    cache = read(reader, tokens, True)
    hidden = reader.embed(tokens.new_zeros(1, count))
    return timed(lambda: reader.decoder(hidden=hidden, cache=cache), str(reader.device))[0]
