"""Medians of the wire's times, and the latency of text and channel by bandwidth (C-M11)."""

from collections.abc import Mapping, Sequence
from statistics import median

from ember.studies.c2c.wire.tables import C2C_M11, WIRE_BLOBS, WIRE_LATENCY, WIRE_STAGES
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes

PER_DECADE, DECADES = 8, 5  # of bandwidth, from 1 Mbit/s to 100 Gbit/s


@makes(C2C_M11)
def summarise_wire(blobs, stages) -> list[dict]:
    """Rows of C2C_M11 from the tables WIRE_BLOBS and WIRE_STAGES."""
    media = {message["medium"]: message for message in messages(blobs, stages)}
    rows = []
    for (payload, scheme), runs in grouped(records(blobs, WIRE_BLOBS), "payload", "scheme").items():
        row, _ = summary_row(C2C_M11, runs)
        row["drift"] = row["blob_bytes"] / row["estimated_bytes"] - 1
        if row["limit_kind"] == "memory":
            row["share"] = row["limit_ms"] / row["quantise_ms_median"]
        row["socket_mb_s"] = row["blob_bytes"] / row["socket_ms_median"] / 1e3
        if payload == "pair":
            row["breakeven_mbit_s"] = breakeven(media[scheme], media["text"])
        rows.append(row)
    return rows


@makes(WIRE_LATENCY)
def model_latency(blobs, stages) -> list[dict]:
    """Rows of WIRE_LATENCY from the same tables."""
    bandwidths = [10 ** (n / PER_DECADE) for n in range(DECADES * PER_DECADE + 1)]
    text, *sent = messages(blobs, stages)
    rows = []
    for message in (text, *sent):
        even = None if message is text else breakeven(message, text)
        for bandwidth in bandwidths:
            transfer = 8 * message["message_bytes"] / bandwidth / 1e3
            total = message["before_ms"] + transfer + message["after_ms"]
            found = {"bandwidth_mbit_s": bandwidth, "transfer_ms": transfer, "total_ms": total}
            found["breakeven_mbit_s"] = even
            rows.append(message | found)
    return rows


def messages(blobs, stages) -> list[dict]:
    """Text, and the trained pair's KV in each scheme: bytes, and time before and after transfer."""
    runs = [run for run in records(blobs, WIRE_BLOBS) if run["payload"] == "pair"]
    steps = grouped(records(stages, WIRE_STAGES), "stage")
    ms = {stage: median(row["ms"] for row in rows) for (stage,), rows in steps.items()}
    first = steps[("generate",)][0]
    machine = ("device", "device_name", "dtype", "model", "weights")
    about = {name: first[name] for name in machine} | {"evidence": "modelled"}
    text = {
        "medium": "text",
        "message_bytes": first["text_bytes"],
        "before_ms": ms["generate"],
        "after_ms": ms["read"],
        "n": len(steps[("generate",)]),
    }
    found = [text | about]
    for (scheme,), rows in grouped(runs, "scheme").items():
        before = _sum(rows, ("quantise_ms", "pack_ms"))
        after = _sum(rows, ("unpack_ms", "dequantise_ms")) + ms["fuse"]
        said = {"medium": scheme, "message_bytes": rows[0]["blob_bytes"], "n": len(rows)}
        found.append(said | {"before_ms": before, "after_ms": after} | about)
    return found


def breakeven(channel: Mapping, text: Mapping) -> float | None:
    """Mbit/s from which the channel is faster than text; 0: at any bandwidth, None: at none."""
    more = channel["message_bytes"] - text["message_bytes"]
    saved = sum(text[name] - channel[name] for name in ("before_ms", "after_ms"))
    if saved <= 0:
        return None
    return max(0.0, 8 * more / saved / 1e3)


def _sum(rows: Sequence[Mapping], names: Sequence[str]) -> float:
    return sum(median(row[name] for row in rows) for name in names)
