"""Questions through receiver and channel: one row for each item.

Contract. A batch answers as its items would alone. The sharer's half (`share_items`) and the
receiver's (`answer_items`) need only their own model, so that the sequential mode (share all,
unload the sharer, answer all) equals the simultaneous one. Items of the same prompt but for their
last section (questions about one passage) share its prefill and what is sent of it, unless
`share_prefix` is off, as it must be where the time or a selector's view of the question counts.

Shapes: B rows of a batch, T tokens before the last section, V vocabulary.
"""

import json
import logging
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ember.c2c.fuse import SectionCache, fuse
from ember.c2c.pair import Pair, Reader, share
from ember.c2c.source import Context, Sent, SourceKV, Transmit, send_float16
from ember.measure.clock import PhaseClock
from ember.records.atomic import atomic_file
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

SOURCES = ("own", "shuffled", "zero", "none")


class BadEvaluation(EmberError):
    """Items or a pair that cannot be evaluated."""


@dataclass(frozen=True)
class Item:
    """A question. `sharer`: the tokens that the sharer reads. `sections`: the receiver's tokens, of
    which those with `fused` take KV; the last section never does. `index` and `instruction` are for
    each of the receiver's tokens before the last section: the sharer's token whose KV it takes (-1:
    none), and whether it is of the instruction. `choices`: tokens that may be answered, `right` one
    of them. `question`: what the sharer reads after `sharer` where it is to answer by itself, with
    `theirs` as its tokens of the choices. Items of one `group` are not independent."""

    id: int
    group: int
    stratum: str
    sharer: tuple[int, ...]
    sections: tuple[tuple[int, ...], ...]
    fused: tuple[bool, ...]
    index: tuple[int, ...]
    instruction: tuple[bool, ...]
    choices: tuple[int, ...]
    right: int
    question: tuple[int, ...] = ()
    theirs: tuple[int, ...] = ()

    def __post_init__(self):
        before = sum(map(len, self.sections[:-1]))
        if len(self.sections) < 2 or len(self.fused) != len(self.sections) or self.fused[-1]:
            raise BadEvaluation(
                f"item {self.id}: the last section must be there and not be fused.\n"
                "Put at least the final prompt token into a section of its own."
            )
        if not len(self.index) == len(self.instruction) == before:
            raise BadEvaluation(
                f"item {self.id}: {before} tokens stand before its last section, and index and "
                f"instruction have {len(self.index)} and {len(self.instruction)}.\nMake them match."
            )
        if max(self.index, default=-1) >= len(self.sharer):
            raise BadEvaluation(f"item {self.id} takes KV beyond the sharer's text.\nAlign it.")

    @property
    def prefix(self) -> tuple:
        """What items that share a prefill have in common."""
        return (self.sharer, self.sections[:-1], self.fused, self.index, self.instruction)


@dataclass(frozen=True)
class Batch:
    """Items, and the distinct prefixes that they have: rows of it are `prefixes[rows[i]]`."""

    items: list[Item]
    prefixes: list[Item]
    rows: list[int]


def batches(items: Sequence[Item], size: int, share_prefix: bool) -> Iterator[Batch]:
    """Items in order, `size` at a time."""
    for start in range(0, len(items), size):
        some = list(items[start : start + size])
        if not share_prefix:
            yield Batch(some, some, list(range(len(some))))
            continue
        first: dict[tuple, int] = {}
        rows = [first.setdefault(item.prefix, len(first)) for item in some]
        yield Batch(some, [some[rows.index(n)] for n in range(len(first))], rows)


def share_items(
    pair: Pair,
    items: Sequence[Item],
    *,
    source: str = "own",
    batch_size: int = 64,
    share_prefix: bool = True,
    clock: PhaseClock | None = None,
) -> Iterator[SourceKV | None]:
    """The sharer's half: of each batch what it has to send, in the receiver's frame.

    `source`: "own" text; "shuffled": that of the next item with another text; "zero": zeros;
    "none": nothing, the receiver answers alone.
    """
    if source not in SOURCES:
        raise BadEvaluation(
            f"source {source!r} is unknown.\nSet it to one of {', '.join(SOURCES)}."
        )
    others = _next_texts(items) if source == "shuffled" else {}
    clock = clock or PhaseClock(pair.device)
    layers = () if source == "none" else pair.fuser.used_sources()
    for batch in batches(items, batch_size, share_prefix):
        if source == "none":
            yield None
            continue
        texts = [others.get(one.sharer, one.sharer) for one in batch.prefixes]
        device = pair.sharer.device
        tokens, real = padded(texts, device)
        index = [
            [min(n, len(text) - 1) for n in one.index]
            for one, text in zip(batch.prefixes, texts, strict=True)
        ]
        index, _ = padded(_in_frame(batch.prefixes, index), device, -1)
        with torch.inference_mode(), clock.phase("sharer_prefill"):
            made = share(pair.sharer, tokens, index, layers, rotated=pair.fuser.rotated, real=real)
            if source == "zero":
                made = made.map(torch.zeros_like)
        yield made


def answer_items(
    pair: Pair,
    items: Sequence[Item],
    sources: Iterator[SourceKV | None],
    *,
    transmit: Transmit = send_float16,
    batch_size: int = 64,
    share_prefix: bool = True,
    sparse: bool = False,
    new_tokens: int = 0,
    clock: PhaseClock | None = None,
) -> list[dict]:
    """The receiver's half: rows with item, stratum, answer and right (tokens), correct, confidence
    and right_odds (the probabilities of the answer and of the right one among the choices), bytes,
    and `tokens` where `new_tokens` are generated greedily."""
    receiver, rows = pair.receiver, []
    clock = clock or PhaseClock(receiver.device)
    made = batches(items, batch_size, share_prefix)
    for batch, source in zip(made, sources, strict=True):
        sent = None
        if source is not None:
            context = context_of(pair, batch.prefixes)
            with torch.inference_mode(), clock.phase("transmit"):
                sent = transmit(source.to(receiver.device), context)
        with torch.inference_mode():
            logits, generated = _answer(pair, batch, sent, sparse, new_tokens, clock)
        logits = logits.float().cpu()
        for place, item in enumerate(batch.items):
            odds = logits[place, list(item.choices)].softmax(0)
            best = int(odds.argmax())
            rows.append(
                {
                    "item": item.id,
                    "group": item.group,
                    "stratum": item.stratum,
                    "answer": item.choices[best],
                    "right": item.right,
                    "correct": item.choices[best] == item.right,
                    "confidence": float(odds[best]),
                    "right_odds": float(odds[item.choices.index(item.right)]),
                    "bytes": int(sent.bytes[batch.rows[place]]) if sent else 0,
                    **({"tokens": generated[place]} if new_tokens else {}),
                }
            )
    return rows


def evaluate(
    pair: Pair,
    items: Sequence[Item],
    *,
    transmit: Transmit | None = None,
    source: str = "own",
    sequential: bool = False,
    batch_size: int = 64,
    share_prefix: bool = True,
    sparse: bool = False,
    new_tokens: int = 0,
    clock: PhaseClock | None = None,
) -> list[dict]:
    """One row for each item (see `answer_items`), each with the source and whether it was shared.

    `sequential`: the sharer reads everything first, its part is kept on the CPU, and `pair` loses
    it before the receiver answers. `clock` takes the stages' times: sharer_prefill, transmit,
    receiver_prefill, fuse, answer.
    """
    options = {"batch_size": batch_size, "share_prefix": share_prefix, "clock": clock}
    sources = share_items(pair, items, source=source, **options)
    if sequential:
        sources = iter([one and one.to("cpu") for one in sources])
        pair.sharer = None
    return answer_items(
        pair,
        items,
        sources,
        transmit=transmit or send_float16,
        sparse=sparse,
        new_tokens=new_tokens,
        **options,
    )


def in_shards(
    items: Sequence[Item], size: int, folder: Path, key: str, measure: Callable
) -> list[dict]:
    """Rows of `measure(items)` for `size` items at a time; finished shards of this `key` (a hash of
    what else they depend on) are read from `folder`, so that a stopped run loses one."""
    rows = []
    for number, start in enumerate(range(0, len(items), size)):
        file = folder / f"{number}.json"
        some = items[start : start + size]
        ids = [item.id for item in some]
        kept = json.loads(file.read_text()) if file.is_file() else {}
        if kept.get("key") != key or kept.get("items") != ids:
            folder.mkdir(parents=True, exist_ok=True)
            kept = {"key": key, "items": ids, "rows": measure(some)}
            with atomic_file(file) as part:
                part.write_text(json.dumps(kept))
        rows += kept["rows"]
        log.info("%d of %d items", min(start + size, len(items)), len(items))
    return rows


def padded(texts: Sequence[Sequence[int]], device, fill: int = 0) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T) with `fill` after the shorter ones, and which are real: None if all are."""
    longest = max(map(len, texts))
    tokens = torch.full((len(texts), longest), fill, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    lengths = torch.tensor([len(text) for text in texts])
    real = None if (lengths == longest).all() else torch.arange(longest) < lengths[:, None]
    return tokens.to(device), None if real is None else real.to(device)


def _in_frame(items: Sequence[Item], per_token: Sequence[Sequence[int]], fill: int = -1) -> list:
    """Values for each token before the last section, in the batch's frame: sections are padded one
    by one; tokens that are not fused get `fill`."""
    longest = [max(len(item.sections[n]) for item in items) for n in range(len(items[0].fused) - 1)]
    framed = []
    for item, values in zip(items, per_token, strict=True):
        row, start = [], 0
        for size, section, fused in zip(longest, item.sections[:-1], item.fused[:-1], strict=True):
            part = list(values[start : start + len(section)]) if fused else []
            row += part + [fill] * (size - len(part))
            start += len(section)
        framed.append(row)
    return framed


def _next_texts(items: Sequence[Item]) -> dict:
    """Of each of the sharer's texts the one that comes next among the items, the last the first."""
    texts = list(dict.fromkeys(item.sharer for item in items))
    if len(texts) < 2:
        raise BadEvaluation("one text cannot be shuffled.\nGive items of several.")
    return dict(zip(texts, texts[1:] + texts[:1], strict=True))


def context_of(pair: Pair, items: Sequence[Item]) -> Context:
    """What a selector may look at beside the source, of items in a batch."""
    device = pair.receiver.device
    flags = _in_frame(items, [[int(x) for x in item.instruction] for item in items], 0)

    def own() -> list:
        cache, start = SectionCache(pair.receiver.arch, pair.fuser.rotated, device), 0
        for hidden, real in _sections(pair.receiver, items):
            cache.expect(real)
            pair.receiver.decoder(hidden=hidden, cache=cache, last=1)
            start += hidden.shape[1]
        return cache.section(0, start)

    instruction = torch.tensor(flags, device=device, dtype=torch.bool)
    texts = torch.tensor([number_of(item) for item in items], device=device)
    return Context(instruction, texts, own, pair.fuser)


def number_of(item: Item) -> int:
    """A number below 2**32 of the text that the sharer reads."""
    return zlib.crc32(array("q", item.sharer).tobytes())


def _sections(receiver: Reader, items: Sequence[Item], last: bool = False):
    """Hidden states (B, t, H) of each section but the last (or the last alone, `last`), and which
    tokens of it are real; always said if any section of the batch is padded."""
    count = len(items[0].sections)
    parts = [padded([item.sections[n] for item in items], receiver.device) for n in range(count)]
    ragged = any(real is not None for _, real in parts)
    if ragged and receiver.smear is not None:
        raise BadEvaluation(
            "a model with a smear takes no padded batches.\nGive texts of one length, or batch 1."
        )
    hidden = receiver.embed(torch.cat([tokens for tokens, _ in parts], 1))
    start = 0
    for number, (tokens, real) in enumerate(parts):
        stop = start + tokens.shape[1]
        if (number == count - 1) == last:
            said = torch.ones_like(tokens, dtype=torch.bool) if real is None and ragged else real
            yield hidden[:, start:stop], said
        start = stop


def _answer(
    pair: Pair, batch: Batch, sent: Sent | None, sparse: bool, new_tokens: int, clock: PhaseClock
) -> tuple[Tensor, list[list[int]]]:
    """Logits (B, V) after the prompt, and greedy continuations."""
    receiver = pair.receiver
    rotated = True if pair.fuser is None else pair.fuser.rotated
    cache, start = SectionCache(receiver.arch, rotated, receiver.device), 0
    if len({(len(item.fused)) for item in batch.items}) > 1:
        raise BadEvaluation("items of one batch differ in their number of sections.\nSplit them.")
    for number, (hidden, real) in enumerate(_sections(receiver, batch.prefixes)):
        stop = start + hidden.shape[1]
        with clock.phase("receiver_prefill"):
            cache.expect(real)
            receiver.decoder(hidden=hidden, cache=cache, last=1)
        if sent is not None and any(item.fused[number] for item in batch.prefixes):
            with clock.phase("fuse"):
                part = _between(sent.source, start, stop)
                own = cache.section(start, stop)
                lost = None if sent.lost is None else sent.lost[:, start:stop]
                made = fuse(pair.fuser, own, part, part.tokens, sparse=sparse, lost=lost)
                cache.replace(start, made)
        start = stop
    with clock.phase("answer"):
        if batch.rows != list(range(len(batch.prefixes))):
            cache.take(torch.tensor(batch.rows, device=receiver.device))
        ((hidden, real),) = _sections(receiver, batch.items, last=True)
        cache.expect(real)
        out = receiver.decoder(hidden=hidden, cache=cache)
        ends = hidden.new_tensor([len(item.sections[-1]) - 1 for item in batch.items]).long()
        logits = receiver.decoder.logits(out[torch.arange(len(out)), ends])
        generated = _continue(receiver, batch.items, cache, logits, new_tokens)
    return logits, generated


def _continue(
    receiver: Reader, items: Sequence[Item], cache: SectionCache, logits: Tensor, new_tokens: int
) -> list[list[int]]:
    """Greedy tokens after the prompts, up to and without the end of the text."""
    if not new_tokens:
        return []
    ends, device = set(receiver.decoder.eos_token_ids), receiver.device
    texts = torch.tensor([item.sections[-1][-1:] for item in items], device=device)
    if receiver.smear is not None:
        texts = torch.tensor([sum(item.sections, ())[-2:] for item in items], device=device)
    made, done = [[] for _ in items], [False] * len(items)
    for _ in range(new_tokens):
        token = logits.argmax(-1)
        for place, one in enumerate(token.tolist()):
            done[place] = done[place] or one in ends
            if not done[place]:
                made[place].append(one)
        if all(done) or max(map(len, made)) == new_tokens:
            break
        texts = torch.cat([texts, token[:, None]], 1)[:, -3:]
        cache.expect(torch.ones_like(token[:, None], dtype=torch.bool) if cache.ragged else None)
        out = receiver.decoder(hidden=receiver.embed(texts)[:, -1:], cache=cache)
        logits = receiver.decoder.logits(out[:, -1])
    return made


def _between(source: SourceKV, start: int, stop: int) -> SourceKV:
    """A source's tokens start … stop."""
    part = source.map(lambda x: x[:, start:stop])
    return SourceKV(
        part.keys, part.values, part.layers, source.tokens[:, start:stop], source.rotated
    )
