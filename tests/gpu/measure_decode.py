"""Measure decoding on a CUDA device, with kernels and without, into two tables.

    PYTHONPATH=src python tests/gpu/measure_decode.py FOLDER [--preset qwen3-4b]

Random weights: they time an engine and say nothing about quality. Prints medians; the tables
(decode_roofline, decode_kernels) carry provenance, `ember show` prints them.
"""

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from ember.measure.system import hardware
from ember.records.provenance import collect
from ember.records.tables import write_table
from ember.studies.p1.roofline.measure import measure_decode
from ember.studies.p1.roofline.tables import DECODE_KERNELS, DECODE_ROOFLINE
from ember.studies.shared.models.fetch import fetch_model

SAMPLINGS = [{"temperature": 1.0}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="qwen3-4b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "contexts": arguments.contexts,
        "rows": arguments.rows,
        "new_tokens": arguments.new_tokens,
        "samplings": SAMPLINGS,
        "warmup": 1,
        "repeats": arguments.repeats,
        "device": "cuda",
        "dtype": "bfloat16",
        "seed": 0,
    }
    started, began = datetime.now(UTC), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / arguments.preset
        fetch_model(
            {"source": "random", "preset": arguments.preset, "architecture": {}}, model, seed=0
        )
        tables = measure_decode(model=model, **settings)
    schemas = (DECODE_ROOFLINE, DECODE_KERNELS)
    outputs = [arguments.folder / f"{schema.name}.parquet" for schema in schemas]
    provenance = collect(
        rule="tests/gpu/measure_decode.py",
        inputs=[],
        outputs=outputs,
        params=settings | {"preset": arguments.preset},
        config={},
        seeds={"seed": 0},
        code=None,
        threads=1,
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    for rows, schema, path in zip(tables, schemas, outputs, strict=True):
        write_table(path, rows, schema, provenance)
    show(*tables)


def show(decode: list[dict], kernels: list[dict]) -> None:
    """Medians, and ranges of the speeds."""
    print(f"read {decode[0]['read_gb_s']:.0f} GB/s")
    keys = ("operators", "context", "rows", "sampling")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in decode):
        rows = [row for row in decode if tuple(row[k] for k in keys) == key]
        middle = {
            name: statistics.median(row[name] for row in rows)
            for name in ("step_ms", "sampling_ms", "share", "limit_ms")
        }
        decodes, totals = (
            [row[name] for row in rows] for name in ("decode_tokens_per_s", "total_tokens_per_s")
        )
        print(
            *key,
            f"step {middle['step_ms']:.3f} "
            f"sampling {middle['sampling_ms']:.3f} limit {middle['limit_ms']:.3f} ms "
            f"share {middle['share']:.3f} decode {statistics.median(decodes):.0f} "
            f"({min(decodes):.0f}-{max(decodes):.0f}) total {statistics.median(totals):.0f} "
            f"({min(totals):.0f}-{max(totals):.0f}) tok/s",
        )
    for row in kernels:
        share = "" if row["share"] is None else f" share {row['share']:.2f}"
        print(
            *(row[k] for k in ("operators", "context", "rows", "kernel")),
            f"{row['launches']} x {row['us']:.2f} = {row['step_us']:.0f} us{share}",
        )


if __name__ == "__main__":
    main()
