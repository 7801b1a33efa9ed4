"""Measure continuous batching on a CUDA device: `rollout_throughput` and `rollout_consistency`.

    PYTHONPATH=src python tests/gpu/measure_rollout.py FOLDER [--preset qwen3-4b]

Random weights: they time an engine and say nothing about quality. The tables carry provenance;
prints what `rollout_speed` summarises. The workflow's rules make the same tables at scale `gpu`.
"""

import argparse
import logging
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from ember.measure.system import hardware
from ember.records.provenance import collect
from ember.records.tables import write_table
from ember.studies.p1.consistency.measure import check_consistency
from ember.studies.p1.consistency.tables import ROLLOUT_CONSISTENCY
from ember.studies.p1.rollout.measure import measure_rollouts
from ember.studies.p1.rollout.summary import summarise_rollouts
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED, ROLLOUT_THROUGHPUT
from ember.studies.p1.workload.make import make_workload
from ember.studies.shared.models.fetch import fetch_model

POINTS = ["4x8:8", "16x8:32", "100x8:64", "100x8:128", "100x8:256", "64x1:64", "24x16:64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="qwen3-4b")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--generation", type=int, default=128)
    parser.add_argument("--points", nargs="+", default=POINTS, metavar="PROMPTSxCANDIDATES:ROWS")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lengths = {"context": arguments.context, "generation": arguments.generation, "prefix": 0}
    names = ("prompts", "candidates", "rows")
    points = [
        dict(zip(names, map(int, re.split("[x:]", point)), strict=True))
        | lengths
        | {"repeats": arguments.repeats}
        for point in arguments.points
    ]
    runtime = {"device": "cuda", "dtype": "bfloat16", "seed": 0}
    settings = {"points": points, "warmup": arguments.warmup}
    consistency = {
        "prompts": 6,
        "candidates": 4,
        "prompt_tokens": 600,
        "new_tokens": 48,
        "rows": 16,
        "tolerance": 0.5,
    }
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / arguments.preset
        fetch_model(
            {"source": "random", "preset": arguments.preset, "architecture": {}}, model, seed=0
        )
        workload = make_workload(
            model=model,
            documents=max(point["prompts"] for point in points),
            tokens=arguments.context,
            seed=0,
        )
        about = {"model": model, "workload": workload, **runtime}
        for schema, measure, what in (
            (ROLLOUT_THROUGHPUT, measure_rollouts, settings),
            (ROLLOUT_CONSISTENCY, check_consistency, consistency),
        ):
            started, began = datetime.now(UTC), time.perf_counter()
            rows = measure(**about, **what)
            tables[schema] = rows, what, started, time.perf_counter() - began
            write(arguments.folder, schema, *tables[schema])
            if schema is ROLLOUT_THROUGHPUT:
                rows = summarise_rollouts(rows)
                write(arguments.folder, ROLLOUT_SPEED, rows, *tables[schema][1:])
                show(rows)
            else:
                for row in rows:
                    print({key: row[key] for key in SHOWN}, flush=True)


SHOWN = (
    *("check", "sampling", "tokens", "token_mismatches", "max_logprob_diff"),
    *("max_sampled_logprob_diff", "holds", "reason"),
)


def write(folder: Path, schema, rows, params, started, seconds) -> None:
    path = folder / f"{schema.name}.parquet"
    provenance = collect(
        rule="tests/gpu/measure_rollout.py",
        inputs=[],
        outputs=[path],
        params=params,
        config={},
        seeds={"seed": 0},
        code=None,
        threads=1,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        hardware=hardware(),
    )
    write_table(path, rows, schema, provenance)


def show(rows: list[dict]) -> None:
    for row in rows:
        print(
            f"{row['point']}: {row['tokens_per_s_median']:.0f} tok/s whole, "
            f"{row['decode_tokens_per_s_median']:.0f} decode (limit "
            f"{row['limit_tokens_per_s']:.0f}, share {row['share_median']:.3f}), batch "
            f"{row['batch']:.1f}, occupied {row['occupancy']:.3f}, prefill share "
            f"{row['prefill_share_median']:.3f}, {row['prefills']} prefills, "
            f"{row['peak_kv_bytes'] / 1e9:.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
