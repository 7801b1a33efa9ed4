"""The wire format: bit for bit there and back, and nothing that a stranger sends does harm."""

import json
import tracemalloc
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.c2c import wire
from ember.c2c.channel import Part, Payload, part_of
from ember.c2c.wire import WireError, inspect, pack, unpack
from ember.formats.axes import Along
from ember.formats.pairs import VALID

PAIRS = [(scheme, axis) for scheme, axes in VALID.items() for axis in axes]
GOLDEN = Path(__file__).with_name("golden_v1.json")


def payload(
    seed: int,
    kinds: list[tuple[str, str]],
    *,
    length: int = 9,
    tokens: int | None = None,
    run: int | None = None,
    heads: int = 2,
    size: int = 8,
    **more,
) -> Payload:
    """A payload of layers of these schemes and axes, values another than keys.

    Values are of whole arithmetic, so that they are the same with every release of torch.
    """
    sent = (length if run is None else run) if tokens is None else tokens
    index = None if tokens is None else torch.arange(tokens) * length // max(tokens, 1)
    places = torch.arange(sent * heads * size).view(sent, heads, size)

    def parts(order: int) -> tuple[Part, ...]:
        drawn = [
            ((places * 7919 + seed * 104729 + number * 1299709 + order) % 1009 - 504) / 64
            for number in range(len(kinds))
        ]
        turned = zip(drawn, kinds[::order], strict=True)
        return tuple(part_of(x, Along(scheme, axis, group=4)) for x, (scheme, axis) in turned)

    keys, values = parts(1), parts(-1)
    layers, start = tuple(range(3, 3 + len(kinds))), more.pop("start", 0)
    return Payload(length, start, index, layers, keys, values, True, **more)


def assert_same(one: Payload, other: Payload) -> None:
    for name in ("length", "start", "layers", "rotated"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.index is None) == (other.index is None)
    if one.index is not None:
        assert torch.equal(one.index, other.index)
        assert one.index_bytes == other.index_bytes
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    for ours, theirs in pairs:
        assert replace(ours, codes=None, parts={}) == replace(theirs, codes=None, parts={})
        assert torch.equal(ours.codes, theirs.codes)
        assert ours.parts.keys() == theirs.parts.keys()
        for name, values in ours.parts.items():
            assert values.dtype == theirs.parts[name].dtype
            assert torch.equal(values, theirs.parts[name])


@pytest.mark.parametrize(("scheme", "axis"), PAIRS)
@pytest.mark.parametrize("tokens", [None, 0, 1, 4])
def test_there_and_back_bit_for_bit(scheme, axis, tokens):
    sent = payload(1, [(scheme, axis), ("int8", "token"), ("fp16", "layer")], tokens=tokens)
    blob = pack(sent)
    assert_same(unpack(blob), sent)
    found = inspect(blob)
    assert found["bytes"] == len(blob)
    parts = [found[f"{name}_bytes"] for name in ("header", "indices", "codes", "scales")]
    assert sum(parts) == len(blob)
    assert sum(parts[1:]) == sent.bytes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(PAIRS), max_size=4),
    st.integers(0, 40),
    st.data(),
)
def test_any_payload_comes_back(seed, kinds, length, data):
    tokens = data.draw(st.none() | st.integers(0, length))
    run = data.draw(st.integers(0, length))
    start = data.draw(st.integers(0, length - run)) if tokens is None and kinds else 0
    heads, size = data.draw(st.sampled_from([(1, 4), (2, 16), (3, 8)]))
    width = data.draw(st.sampled_from([2, 4]))
    sent = payload(
        seed,
        kinds,
        length=length,
        tokens=tokens,
        run=run,
        heads=heads,
        size=size,
        index_bytes=2 if tokens is None else width,
        start=start,
    )
    assert_same(unpack(pack(sent)), sent)


def test_asymmetric_scales_and_long_passages():
    x = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0)) + 4
    one = part_of(x, Along("int4", "channel", symmetric=False))
    index = torch.tensor([0, 65536, 99_999])
    sent = Payload(100_000, 0, index, (7,), (one,), (one,), False, 4)
    assert_same(unpack(pack(sent)), sent)
    with pytest.raises(WireError, match="indices of 2 bytes"):
        pack(replace(sent, index_bytes=2))


def test_the_header_is_small():
    """Byte figures of short payloads would drift from estimates otherwise."""
    sent = payload(0, [("int4", "token")] * 3, length=79, tokens=8, heads=1, size=16)
    assert inspect(pack(sent))["header_bytes"] <= 32


def test_the_golden_blob():
    """Bytes of version 1 as they were first written. A change here is a new version."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == wire.VERSION
    for case in golden["blobs"]:
        kinds = [tuple(kind) for kind in case["kinds"]]
        sent = payload(case["seed"], kinds, length=case["length"], tokens=case["tokens"])
        assert pack(sent).hex() == case["hex"]
        assert_same(unpack(bytes.fromhex(case["hex"])), sent)


def test_numbers_of_the_wire_cover_every_scheme_and_axis():
    assert set(wire.SCHEMES) == set(VALID)
    assert set(wire.AXES) == {axis for axes in VALID.values() for axis in axes}


# What strangers send


BLOB = pack(payload(5, [("int4", "token"), ("nvfp4", "token"), ("fp8", "head")], tokens=5))


def sealed(content: bytes) -> bytes:
    """With a right checksum: what is wrong must be found by what it says."""
    return content + zlib.crc32(content).to_bytes(4, "little")


def survives(blob: bytes) -> None:
    """It is read or refused, within memory of the blob's own size."""
    tracemalloc.start()
    try:
        with suppress(WireError):
            inspect(blob)
            unpack(blob)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * len(blob) + 200_000


def test_cut_off():
    for end in range(len(BLOB) - 4):
        for blob in (BLOB[:end], sealed(BLOB[:end])):
            with pytest.raises(WireError):
                unpack(blob)


def test_every_flipped_bit_is_noticed():
    for bit in range(8 * len(BLOB)):
        flipped = bytearray(BLOB)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            unpack(flipped)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BLOB) - 5), st.integers(0, 255)), min_size=1))
def test_changed_bytes_under_a_right_checksum(changes):
    changed = bytearray(BLOB[:-4])
    for place, value in changes:
        changed[place] = value
    survives(sealed(bytes(changed)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes(drawn, announced):
    survives(sealed(BLOB[:5] + drawn if announced else drawn))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BLOB) - 4), st.integers(0, len(BLOB) - 4), st.integers(0, len(BLOB) - 4))
def test_duplicated_and_moved_runs(start, end, at):
    body = BLOB[:-4]
    survives(sealed(body[:at] + body[min(start, end) : max(start, end)] + body[at:]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**35 - 1) | st.integers(0, 300), min_size=4, max_size=14))
def test_giant_numbers(numbers):
    """A header of any numbers promises far more than there is."""
    head = bytes((*wire.MAGIC, wire.VERSION, 2))
    head += b"".join(map(wire._varint, numbers))
    survives(sealed(head + bytes(-len(head) % 4) + bytes(64)))


def header_with(**changes) -> bytes:
    """A sealed blob of 64 zero bytes after a header with some of its fields changed."""
    header = wire.Header.of(payload(1, [("int4", "token")], tokens=2))
    head = replace(header, **changes).encoded()
    return sealed(head + bytes(64))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"length": 2**30}, "1,073,741,824 tokens; at most"),
        ({"tokens": 10}, "10 tokens from 0 on of a passage of 9"),
        ({"start": 8, "index_bytes": 0}, "2 tokens from 8 on of a passage of 9"),
        ({"start": 1}, "2 tokens from 1 on of a passage of 9"),
        ({"layers": (2**31,)}, "are no layers"),
        ({"length": 2**20, "index_bytes": 4, "tokens": 2**20}, "it promises"),
    ],
)
def test_says_what_is_wrong(changes, says):
    with pytest.raises(WireError, match=says):
        unpack(header_with(**changes))


def test_refuses_giant_and_missing_dimensions():
    kind = wire.Kind("int4", "token", True, 4, 2, 8)
    for change in ({"heads": 2**16}, {"size": 0}, {"group": 0}, {"size": 2**30}):
        bad = replace(kind, **change)
        with pytest.raises(WireError, match=r"heads of .* in groups of"):
            unpack(header_with(keys=(bad,), values=(bad,)))
    wide = replace(kind, heads=60_000, size=60_000)
    with pytest.raises(WireError, match="it promises"):
        unpack(header_with(keys=(wide,), values=(wide,)))


def test_refuses_pairs_that_are_none():
    bad = wire.Kind("nf4", "head", True, 4, 2, 8)
    with pytest.raises(WireError, match="no KV is sent so"):
        unpack(header_with(keys=(bad,), values=(bad,)))


def test_another_version_is_named():
    other = bytearray(BLOB[:-4])
    other[4] = 9
    with pytest.raises(WireError, match="version 9 of the wire format, read is 1"):
        unpack(sealed(bytes(other)))


def test_a_header_has_one_spelling():
    """A number with a needless byte says the same and is refused."""
    head = bytearray(wire.Header.of(payload(1, [], tokens=2)).encoded().rstrip(b"\0"))
    assert head[6] == 9
    longer = bytes(head[:6]) + bytes((9 | 128, 0)) + bytes(head[7:])
    with pytest.raises(WireError, match="not spelled"):
        unpack(sealed(longer + bytes(-len(longer) % 4) + bytes(4)))


def test_indices_ascend_within_the_passage():
    sent = payload(2, [("int8", "token")], tokens=3)
    for wrong in ([1, 1, 2], [2, 1, 3], [1, 2, 9]):
        with pytest.raises(WireError, match="do not ascend"):
            pack(replace(sent, index=torch.tensor(wrong)))
    blob = bytearray(pack(sent)[:-4])
    at = next(s for s in wire._read(pack(sent))[1] if s.kind == "indices").at
    blob[at : at + 6] = bytes((5, 0, 5, 0, 6, 0))
    with pytest.raises(WireError, match="do not ascend"):
        unpack(sealed(bytes(blob)))


@pytest.mark.parametrize(("scheme", "axis"), PAIRS)
def test_whatever_is_read_is_finite(scheme, axis):
    """Sections full of one byte: refused, or finite when dequantised."""
    sent = payload(3, [(scheme, axis)])
    sections = wire._read(pack(sent))[1]
    for fill in (0x00, 0x7F, 0xFF, 0x7C, 0xFC, 0x80):
        for kind in {one.kind for one in sections}:
            blob = bytearray(pack(sent)[:-4])
            for one in sections:
                if one.kind == kind:
                    blob[one.at : one.at + one.bytes] = bytes([fill]) * one.bytes
            try:
                got = unpack(sealed(bytes(blob)))
            except WireError:
                continue
            for one in (*got.keys, *got.values):
                along = Along(one.scheme, one.axis, one.symmetric, one.group)
                assert along.unpack(one.codes, one.parts, one.shape).isfinite().all()


def test_refuses_payloads_that_contradict_themselves():
    sent = payload(4, [("int8", "token"), ("int4", "head")], tokens=3)
    short = replace(sent.keys[0], codes=sent.keys[0].codes[:-1])
    for wrong, says in (
        (replace(sent, keys=sent.keys[:1]), "differ in number"),
        (replace(sent, index=sent.index[1:]), "to be sent"),
        (replace(sent, index=None, start=7), "from 7 on"),
        (replace(sent, keys=(short, sent.keys[1])), "do not fit"),
        (replace(sent, layers=(1, 1)), "repeat"),
    ):
        with pytest.raises(WireError, match=says):
            pack(wrong)
