"""What products and decoding are timed on (L-2)."""

from collections.abc import Mapping
from pathlib import Path

from ember.studies.measured import on_device


def prepared(model: str | Path, runtime: Mapping, threads: int) -> tuple:
    """The device, the decoder of a model directory on it, and what every row says of both, with the
    read bandwidth measured now (GB/s). Seeds torch and sets its threads."""
    import torch

    from ember.measure.roofline import best_read_gb_s

    torch.manual_seed(runtime["seed"])
    torch.set_num_threads(threads)
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"], named=True)
    return device, decoder, about | {"read_gb_s": best_read_gb_s(device, repeats=20)}


def with_best_bandwidth(rows: list[dict], device: str) -> list[dict]:
    """The rows with the read bandwidth measured again where that is more: what is read depends on
    what else the machine does."""
    from ember.measure.roofline import best_read_gb_s

    again = best_read_gb_s(device, repeats=20)
    return [row | {"read_gb_s": max(row["read_gb_s"], again)} for row in rows]
