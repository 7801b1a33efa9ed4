"""The wire's study: arithmetic of latency and break-even, and the socket to another process."""

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.records.tables import write_table
from ember.studies.c2c.wire.peer import linked
from ember.studies.c2c.wire.summary import (
    breakeven,
    messages,
    model_latency,
    summarise_wire,
)
from ember.studies.c2c.wire.tables import C2C_M11, WIRE_BLOBS, WIRE_LATENCY, WIRE_STAGES

ABOUT = {
    "device": "cpu",
    "device_name": "cpu",
    "dtype": "float32",
    "model": "receiver",
    "weights": "trained",
    "evidence": "measured",
}
SIZES = {"header_bytes": 20, "indices_bytes": 0, "scales_bytes": 30}
MS = ("quantise_ms", "pack_ms", "unpack_ms", "dequantise_ms", "socket_ms")


def blobs(payload="pair", limit_kind="memory", scheme="int4", size=1000):
    fixed = {"payload": payload, "scheme": scheme, "axis": "token", "layers": 2, "tokens": 8}
    fixed |= SIZES | {"source_bytes": 4000, "estimated_bytes": size - 20, "blob_bytes": size}
    fixed |= {
        "codes_bytes": size - 50,
        "copy_gb_s": 10.0,
        "limit_ms": 0.5,
        "limit_kind": limit_kind,
    }
    times = [dict.fromkeys(MS, value) for value in (1.0, 2.0, 9.0)]
    return [fixed | ms | {"repeat": n} | ABOUT for n, ms in enumerate(times)]


def stages(generate=50.0, read=3.0):
    said = {"generate": generate, "read": read, "fuse": 4.0, "ping": 0.1}
    about = ABOUT | {"text_tokens": 64, "text_bytes": 300}
    return [{"stage": k, "repeat": n, "ms": v} | about for k, v in said.items() for n in range(3)]


def test_medians_and_shares(tmp_path):
    runs = blobs() + blobs("big", "cache") + blobs(scheme="fp16", size=4020)
    write_table(tmp_path / "blobs.parquet", runs, WIRE_BLOBS, {})
    write_table(tmp_path / "stages.parquet", stages(), WIRE_STAGES, {})
    rows = summarise_wire(tmp_path / "blobs.parquet", tmp_path / "stages.parquet")
    write_table(tmp_path / "m11.parquet", rows, C2C_M11, {})
    pair, big, raw = rows
    assert (pair["quantise_ms_median"], pair["quantise_ms_max"], pair["n"]) == (2.0, 9.0, 3)
    assert pair["share"] == 0.25
    assert big["share"] is None
    assert big["breakeven_mbit_s"] is None
    assert pair["socket_mb_s"] == pytest.approx(0.5)
    assert pair["drift"] == pytest.approx(20 / 980)
    # 700 bytes more, and 53 - 12 ms less.
    assert pair["breakeven_mbit_s"] == pytest.approx(8 * 700 / 41 / 1e3)
    assert raw["breakeven_mbit_s"] > pair["breakeven_mbit_s"]


def test_latency_is_stages_plus_bytes_over_bandwidth(tmp_path):
    rows = model_latency(blobs(), stages())
    write_table(tmp_path / "latency.parquet", rows, WIRE_LATENCY, {})
    assert {row["evidence"] for row in rows} == {"modelled"}
    text = [row for row in rows if row["medium"] == "text"]
    assert (text[0]["bandwidth_mbit_s"], text[-1]["bandwidth_mbit_s"]) == (1, 1e5)
    assert text[0]["total_ms"] == pytest.approx(50 + 3 + 8 * 300 / 1e3)
    sent = [row for row in rows if row["medium"] == "int4"]
    assert sent[0]["total_ms"] == pytest.approx(4 + 8 * 1000 / 1e3 + 4 + 4)
    totals = [row["total_ms"] for row in sent]
    assert totals == sorted(totals, reverse=True)


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.integers(1, 10**9), st.integers(1, 10**4))
def test_at_the_break_even_both_take_as_long(ours, theirs, size, text_size):
    channel = {"message_bytes": size, "before_ms": ours, "after_ms": 0.0}
    text = {"message_bytes": text_size, "before_ms": theirs, "after_ms": 0.0}
    even = breakeven(channel, text)
    if even is None:
        assert ours >= theirs
    elif even == 0:
        assert size <= text_size
    else:
        total = [
            one["before_ms"] + 8 * one["message_bytes"] / even / 1e3 for one in (channel, text)
        ]
        assert math.isclose(*total, rel_tol=1e-6)


def test_text_needs_generation_and_reading_and_kv_the_fuser():
    text, sent = messages(blobs(), stages())
    assert (text["before_ms"], text["after_ms"], text["message_bytes"]) == (50.0, 3.0, 300)
    assert (sent["before_ms"], sent["after_ms"], sent["message_bytes"]) == (4.0, 8.0, 1000)


def test_blobs_arrive_in_another_process():
    with linked() as link:
        for blob in (b"x", bytes(range(256)) * 5000, b"y" * 7):
            link.send(blob)
            assert link.arrived() == zlib.crc32(blob)


def test_a_receiver_that_has_gone_is_noticed():
    with linked() as link:
        link._connection.sendall(bytes(8))  # no bytes: it ends
        with pytest.raises(ConnectionError):
            link.arrived()
