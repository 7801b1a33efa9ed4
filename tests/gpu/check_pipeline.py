"""Check the pipeline on two CUDA devices, then measure its splits at the Qwen3-4B shape.

    PYTHONPATH=src python tests/gpu/check_pipeline.py FOLDER [--check-only] [--preset qwen3-4b]

The check: in float32 two stages in kernels choose the one-device engine's tokens, greedy and
sampled, with and without overlap. Then the tables of rules/p1/pipeline.smk go to FOLDER, with
provenance; weights are random: they time an engine and say nothing about quality. Not collected by
pytest: machines with GPUs may have nothing but torch.
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from ember.backends.sampling import SamplingParams
from ember.measure.system import hardware
from ember.model.architecture import Architecture
from ember.pipeline.pipeline import Pipeline
from ember.records.provenance import collect
from ember.records.tables import write_table
from ember.studies.p1.pipeline.measure import profile_layers, sweep_splits
from ember.studies.p1.pipeline.summary import summarise_pipeline
from ember.studies.p1.pipeline.tables import (
    LAYER_COSTS,
    PIPELINE,
    PIPELINE_EVENTS,
    PIPELINE_RUNS,
)
from ember.studies.p1.profile.stages import profile_stages
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE
from ember.studies.p1.workload.make import make_workload
from ember.studies.shared.models.fetch import fetch_model

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_layers": 5,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_positions": 4096,
}
FRACTIONS = [0.25, 1 / 3, 0.5, 2 / 3, 0.75]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--preset", default="qwen3-4b")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--generation", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--generations", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rollout-repeats", type=int, default=2)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.device_count()} GPUs", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        failures = check(Path(folder))
        if not given.check_only:
            given.folder.mkdir(parents=True, exist_ok=True)
            measure(given, Path(folder))
    assert not failures, f"{failures} runs chose other tokens than one device"
    print("all checks passed")


def check(folder: Path) -> int:
    """Runs in float32 in which tokens of two stages are not those of one device."""
    model = folder / "small"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(Architecture.make(**SMALL).to_hf()))
    (model / "ember.json").write_text('{"weights": "random", "seed": 1}')
    generator = torch.Generator().manual_seed(2)
    prompts = [
        torch.randint(1000, (length,), generator=generator).tolist()
        for length in (300, 300, 300, 300, 70, 70)
    ]
    failures = 0
    options = {"splits": [1, 3], "capacity": 400, "device": "cuda", "whole": True}
    with Pipeline(model, **options, timeout_s=90) as pipeline:
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(max_tokens=40, temperature=temperature, seed=5)
            expected = pipeline.single(prompts, sampling).tokens
            for split in (1, 3):
                for micro_batches in (2, 6):
                    for overlap in (True, False):
                        run = pipeline.generate(
                            prompts,
                            sampling,
                            split=split,
                            micro_batches=micro_batches,
                            chunks=3,
                            overlap=overlap,
                        )
                        assert run.forms == ("kernels", "kernels"), run.forms
                        same = sum(a == b for a, b in zip(run.tokens, expected, strict=True))
                        what = f"temperature {temperature}, {split} + {5 - split} layers"
                        how = f"{micro_batches} micro-batches, overlap {overlap}"
                        print(
                            f"float32, {what}, {how}: {same} of {len(expected)} equal", flush=True
                        )
                        failures += same != len(expected)
    return failures


def measure(given, folder: Path) -> None:
    """All tables of the pipeline, one after the other, each written when it is there."""
    model = folder / given.preset
    fetch_model({"source": "random", "preset": given.preset, "architecture": {}}, model, seed=0)
    longest = max(given.context, *given.contexts)
    workload = make_workload(model=model, documents=given.sequences, tokens=longest, seed=0)
    runtime = {"timeout": 120.0, "device": "cuda", "dtype": "bfloat16", "seed": 0}
    shape = {
        "context": given.context,
        "generation": given.generation,
        "sequences": given.sequences,
        "micro_batches": given.micro_batches,
        "chunks": 1,
    }
    costs = recorded(
        given.folder,
        {"layer_costs": LAYER_COSTS},
        lambda **options: [profile_layers(model=model, **options)],
        shape | runtime | {"cost_repeats": 3},
    )
    runs, _ = recorded(
        given.folder,
        {"pipeline_runs": PIPELINE_RUNS, "pipeline_events": PIPELINE_EVENTS},
        lambda **options: sweep_splits(model=model, workload=workload, **options),
        shape | runtime | {"split_fractions": FRACTIONS, "warmup": 1, "repeats": given.repeats},
    )
    rows = recorded(
        given.folder,
        {"p1_pipeline": PIPELINE},
        lambda **_: [summarise_pipeline(runs, costs[0])],
        {},
    )[0]
    for row in rows:
        names = ("tokens_per_s_median", "predicted_tokens_per_s", "bubble_share_median")
        print(row["point"], *(f"{name} {row[name]}" for name in names), row["standing"])
    recorded(
        given.folder,
        {"rollout_stages": ROLLOUT_PROFILE},
        lambda **options: [profile_stages(model=model, workload=workload, **options)],
        runtime
        | {
            "contexts": given.contexts,
            "generations": given.generations,
            "split_fraction": 0.5,
            "chunks": 4,
            "warmup": 1,
            "repeats": given.rollout_repeats,
        },
    )


def recorded(folder: Path, schemas: dict, call, params: dict) -> list:
    """Calls and writes the tables that come out, with provenance."""
    started, began = datetime.now(UTC), time.perf_counter()
    tables = call(**params)
    seconds = time.perf_counter() - began
    outputs = [folder / f"{name}.parquet" for name in schemas]
    provenance = collect(
        rule="tests/gpu/check_pipeline.py",
        inputs=[],
        outputs=outputs,
        params=params,
        config={"scale": "gpu"},
        seeds={"seed": 0},
        code=None,
        threads=1,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        hardware=hardware(),
    )
    for path, schema, rows in zip(outputs, schemas.values(), tables, strict=True):
        write_table(path, rows, schema, provenance)
    print(f"{', '.join(schemas)}: {seconds:.1f} s", flush=True)
    return list(tables)


if __name__ == "__main__":
    main()
