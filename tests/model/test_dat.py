"""TorchSharp's checkpoints: the exporter's bytes, packed types, and files that lie."""

import os
import random
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.model.dat import BadDat, read_dat, read_entries, write_dat

CASES = int(os.environ.get("EMBER_FUZZ_CASES", 30_000))


def exported(tensors: dict[str, torch.Tensor]) -> bytes:
    """As TorchSharp's exporter writes it, told again from its format."""

    def number(value):
        digits = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
        return bytes([*(d | 128 for d in digits[:-1]), digits[-1]])

    codes = {torch.float32: 6, torch.float16: 5, torch.int64: 4, torch.bool: 11, torch.uint8: 0}
    parts = [number(len(tensors))]
    for name, tensor in tensors.items():
        parts += [number(len(name)), bytes(name, "utf-8"), number(codes[tensor.dtype])]
        parts += [number(tensor.ndim), *map(number, tensor.shape), tensor.numpy().tobytes()]
    return b"".join(parts)


ORDINARY = {
    "layers.0.weight": torch.arange(300.0).view(3, 100),
    "norm": torch.ones(200, dtype=torch.float16),
    "steps": torch.tensor(7),
    "größe.ß": torch.zeros(0, 4, dtype=torch.bool),
}


def test_the_exporters_bytes_are_read_and_written(tmp_path):
    path = tmp_path / "model.dat"
    path.write_bytes(exported(ORDINARY))
    found = read_dat(path)
    assert [*found] == [*ORDINARY]
    for name, tensor in ORDINARY.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    write_dat(tmp_path / "again.dat", found)
    assert (tmp_path / "again.dat").read_bytes() == path.read_bytes()


def test_packed_bytes_and_scales_keep_their_types(tmp_path):
    path = tmp_path / "packed.dat"
    codes = torch.arange(64, dtype=torch.uint8).view(4, 16)
    scales = torch.tensor([[0.015625, 1.0], [448.0, -2.0]]).to(torch.float8_e4m3fn)
    halves = torch.randn(3, 5).to(torch.bfloat16)
    write_dat(path, {"w.qdata": codes, "w.scale": scales, "h": halves, "plain": codes})
    entries = read_entries(path.read_bytes())
    assert [entry.type for entry in entries.values()] == [100, 101, 15, 0]
    assert entries["w.qdata"].shape == (4, 16)  # of stored bytes, not of codes
    found = read_dat(path)
    # As integers they would be 8, 56, 126 and 192; as E4M3 they are what they were.
    assert found["w.scale"].float().tolist() == [[0.015625, 1.0], [448.0, -2.0]]
    assert torch.equal(found["w.qdata"], codes)
    assert torch.equal(found["h"], halves)


def test_what_is_read_can_be_changed_and_the_file_stays(tmp_path):
    path = tmp_path / "model.dat"
    write_dat(path, ORDINARY)
    before = path.read_bytes()
    read_dat(path)["layers.0.weight"].zero_()
    assert path.read_bytes() == before


GOOD = exported({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.uint8)})
HUGE = b"\xff" * 8 + b"\x7f"  # 2**63 - 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "ends within the number of entries"),
        (GOOD[:-1], "'b' claims 4 bytes .* 3 are left"),
        (b"\x01\x01a", "ends within its element type"),
        (GOOD + b"\0", "1 bytes after its last entry"),
        (b"\x80" * 10, r"above 2\^63"),
        (HUGE, "entries in 9 bytes"),
        (b"\x01\x00\x06\x00", "0 characters"),
        (b"\x01" + HUGE + b"a", "characters"),
        (b"\x01\x01a\x63\x00", "'a' has element type 99; known"),
        (b"\x01\x01a\x06" + HUGE, "'a' has 9223372036854775807 dimensions"),
        (b"\x01\x01a\x06\x01" + HUGE, "'a' claims .* left"),
        (b"\x01\x01a\x06\x03" + HUGE * 3, "'a' claims .* left"),
        (b"\x01\x01a\x06\x02\x00" + HUGE, "'a' has the shape"),
        (b"\x02" + b"\x01a\x00\x00\x01" * 2, "'a' is there twice"),
        (b"\x01\x02\xff\xfe\x00\x00\x01", "not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_by_name(content, said):
    with pytest.raises(BadDat, match=said):
        read_entries(content)


def test_a_missing_or_empty_file_and_tensors_without_a_type_are_refused(tmp_path):
    with pytest.raises(BadDat, match="missing"):
        read_dat(tmp_path / "none.dat")
    (tmp_path / "empty.dat").touch()
    with pytest.raises(BadDat, match="is empty"):
        read_dat(tmp_path / "empty.dat")
    with pytest.raises(BadDat, match="is torch"):
        write_dat(tmp_path / "x.dat", {"x": torch.zeros(2, dtype=torch.complex64)})
    assert not (tmp_path / "x.dat").exists()


def test_damaged_files_are_errors_and_never_cost_more_than_they_are_long():
    random.seed(1)
    seeds = [GOOD, exported(ORDINARY)[:400], b"\x01\x01a\x06\x02\x02\x02" + bytes(16)]
    tracemalloc.start()
    for case in range(CASES):
        content = bytearray(random.choice(seeds))
        for _ in range(random.randint(1, 4)):
            kind, place = random.random(), random.randrange(len(content))
            if kind < 0.5:
                content[place] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
            elif kind < 0.7:
                content[place : place + 1] = struct.pack("<Q", random.getrandbits(64))
            elif kind < 0.85:
                del content[place:][: random.randint(1, 8)]
                content = content[: max(1, place)]
            else:
                content[place:place] = HUGE
        try:
            entries = read_entries(bytes(content))
        except BadDat:
            continue
        assert sum(entry.bytes for entry in entries.values()) < len(content), case
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


DTYPES = [torch.uint8, torch.int16, torch.float32, torch.float64, torch.bfloat16, torch.bool]
shapes = st.lists(st.integers(0, 5), max_size=4)
stored = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 99)),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(stored)
def test_what_is_written_is_read(tmp_path_factory, stored):
    path = tmp_path_factory.mktemp("dat") / "model.dat"
    tensors = {
        name: torch.full(shape, seed).to(dtype).reshape(shape)
        for name, (dtype, shape, seed) in stored.items()
    }
    write_dat(path, tensors)
    found = read_dat(path)
    assert [*found] == [*tensors]
    for name, tensor in tensors.items():
        assert torch.equal(found[name].view(tensor.dtype), tensor)
        assert found[name].shape == tensor.shape
