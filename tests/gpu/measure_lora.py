"""Measure switching adapters, and their alignment with PEFT, on a CUDA device, into tables.

    PYTHONPATH=src python tests/gpu/measure_lora.py FOLDER [--preset qwen3-4b] [--align]

Random weights: they time the switches and test the arithmetic, and say nothing about quality.
Without --align: lora_latency, its summary and lora_exact; with it: lora_cases and what profiles the
layers. The workflow makes the same tables at scale gpu (target p1_lora).
"""

import argparse
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from ember.measure.system import hardware
from ember.records.provenance import collect
from ember.records.tables import write_table
from ember.studies.p1.lora_alignment import tables as lora
from ember.studies.p1.lora_alignment.measure import TABLES, align
from ember.studies.p1.lora_alignment.summary import summarise_alignment
from ember.studies.p1.lora_latency.measure import time_adapters
from ember.studies.p1.lora_latency.summary import summarise_latency
from ember.studies.p1.workload.make import make_workload
from ember.studies.shared.models.fetch import fetch_model

RUN = {"device": "cuda", "dtype": "bfloat16", "seed": 20}
LATENCY = {
    "rank": 8,
    "alpha": 16.0,
    "b_std": 0.02,
    "keeps": ["device", "host", "none"],
    "warmup": 3,
    "repeats": 20,
    "swaps": 100,
}
ALIGNMENT = {
    "dtypes": ["float32", "bfloat16", "float16"],
    "prompts": 8,
    "tokens": 256,
    "profiled": ["synthetic"],
    "layer_fractions": [0.0, 0.5, 1.0],
    "freeze_fractions": [0.5, 2 / 3, 5 / 6],
    "thresholds": [0.1, 0.25, 0.5, 1.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="qwen3-4b")
    parser.add_argument("--align", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    started, began = datetime.now(UTC), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / options.preset
        source = {"source": "random", "preset": options.preset, "architecture": {}}
        fetch_model(source, model, seed=RUN["seed"])
        settings = ALIGNMENT if options.align else LATENCY
        tables = _align(model, Path(folder)) if options.align else _latency(model)
    outputs = {schema: options.folder / f"{schema.name}.parquet" for schema, _ in tables}
    provenance = collect(
        rule="tests/gpu/measure_lora.py",
        inputs=[],
        outputs=list(outputs.values()),
        params=settings | RUN | {"preset": options.preset},
        config={},
        seeds={"seed": RUN["seed"]},
        code=None,
        threads=1,
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    for schema, rows in tables:
        write_table(outputs[schema], rows, schema, provenance)


def _latency(model: Path) -> list:
    latency, exact = time_adapters(model=model, settings=LATENCY, **RUN)
    summary = summarise_latency(latency)
    for row in summary:
        names = ("implementation", "keep", "operation", "phase", "ms_median", "ratio_to_limit")
        print(*(row[name] for name in (*names, "limit_ms", "speedup_over_peft")))
    for row in exact:
        print(row["implementation"], row["keep"], row["exact"], row["max_abs_diff"])
    return [
        (lora.LORA_LATENCY, latency),
        (lora.LORA_LATENCY_SUMMARY, summary),
        (lora.LORA_EXACT, exact),
    ]


def _align(model: Path, folder: Path) -> list:
    import torch

    from ember.lora.adapter import draw_adapter
    from ember.lora.peft import save_adapter
    from ember.model.checkpoint import load_decoder

    decoder = load_decoder(model, "cuda", torch.bfloat16)
    drawn = draw_adapter(decoder, rank=8, alpha=16, seed=21, b_std=0.02, name="synthetic")
    save_adapter(drawn, folder / "adapters" / "synthetic", arch=decoder.arch)
    del decoder
    workload = make_workload(model=model, documents=8, tokens=ALIGNMENT["tokens"], seed=20)
    found = align(
        model=model,
        workload=workload,
        adapters=folder / "adapters",
        settings=ALIGNMENT,
        **RUN,
    )
    found = dict(zip(TABLES, found, strict=True))
    summary = summarise_alignment(found["cases"], seed=20, resamples=1000)
    for row in summary:
        print({k: v for k, v in row.items() if k not in ("model", "weights", "device")})
    for row in found["freeze"]:
        names = ("dtype", "freeze", "threshold", "first_layer", "prefix_effect_max")
        print(*(row[name] for name in (*names, "delta_max_abs_diff", "effect_max_abs")))
    print("ulp", max(row["error_max_ulp"] for row in found["weights"]))
    made = [(schema, found[name]) for name, schema in TABLES.items()]
    return [*made, (lora.LORA_ALIGNMENT, summary)]


if __name__ == "__main__":
    main()
