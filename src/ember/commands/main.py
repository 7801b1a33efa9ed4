"""The command line: look at tables, ask products where they come from.

    ember show results/p1_prefill_share.parquet
    ember why results/p1_fig3.png
    ember archive p1_fig3
    ember generate results/tiny/models/policy prompts.txt --n 8 --temperature 1
    ember estimate results/p1_fig3.png --profile slurm
    ember doctor
    ember check --model DIR --adapter DIR --lora-scale 0.5
    ember profile-rollout results/tiny/models/policy --contexts 512 2048
    ember cache-sweep results/tiny/models/policy --prompts 2048
    ember memory-budget results/tiny/models/policy --context 2048 --batch 4
    ember bench-workflow --out docs/measured/cpu/bench_workflow.parquet

Errors are one clear message and exit status 1 (2 for a wrong command line).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ember.records.errors import EmberError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    options, status = _parser().parse_args(arguments), 0
    try:
        answer = options.command(options)
        text, status = answer if isinstance(answer, tuple) else (answer, 0)
        print(text)
        sys.stdout.flush()
    except EmberError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ember show … | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ember", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    show = commands.add_parser("show", help="print a table with units and provenance")
    show.add_argument("file", type=Path, metavar="FILE.parquet")
    show.add_argument("--rows", type=_count, default=20, help="rows to print (default: 20)")
    show.set_defaults(command=_show)

    why = commands.add_parser("why", help="walk back from a product to everything it came from")
    why.add_argument("product", type=Path, metavar="PRODUCT")
    why.set_defaults(command=_why)

    schema = commands.add_parser("config-schema", help="print the JSON Schema of the configuration")
    schema.set_defaults(command=_config_schema)

    keep = commands.add_parser("archive", help="keep an experiment under reports/<name>_<date>")
    keep.add_argument("experiment", help="how its products begin, such as p1_fig3")
    keep.add_argument("--results", type=Path, default=Path("results"))
    keep.add_argument("--reports", type=Path, default=Path("reports"))
    keep.set_defaults(command=_archive)

    _add_generate(commands)

    ahead = commands.add_parser("estimate", help="what a run will take, by earlier jobs")
    ahead.add_argument("targets", nargs="*", default=["all"], metavar="TARGET")
    ahead.add_argument("--profile", default="local", help="local (default) or slurm")
    ahead.add_argument("--cores", type=_positive, help="in place of the profile's")
    ahead.add_argument("--jobs", type=_positive, help="in place of the profile's")
    ahead.add_argument("--all", action="store_true", help="everything anew, not what is missing")
    ahead.add_argument("--directory", type=Path, default=Path(), help="where the workflow runs")
    ahead.add_argument("--json", action="store_true", help="for programs")
    ahead.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE")
    ahead.set_defaults(command=_estimate)

    doctor = commands.add_parser("doctor", help="say what in results/ is broken, stale or foreign")
    doctor.add_argument("results", type=Path, nargs="?", default=Path("results"), metavar="RESULTS")
    doctor.add_argument("--profile", default="local", help="of the commands (default: local)")
    doctor.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="as snakemake")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)

    check = commands.add_parser("check", help="export logits with and without a LoRA adapter")
    check.add_argument("--model", type=Path, required=True, help="model directory")
    check.add_argument("--adapter", type=Path, required=True, help="folder in PEFT's format")
    check.add_argument("--lora-scale", type=float, default=1.0, help="over the adapter's own")
    prompt = check.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--tokens", type=_tokens, metavar="1,2,3", help="prompt as token ids")
    prompt.add_argument("--text", help="prompt as text, by the model's tokenizer")
    check.add_argument(
        "--positions", choices=("last", "all"), default="last", help="which logits (default: last)"
    )
    check.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    check.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    check.add_argument("--out", type=Path, default=Path("results/lora_logits.parquet"))
    check.set_defaults(command=_check)

    bench = commands.add_parser("bench-workflow", help="time what a newcomer types, on a clone")
    bench.add_argument("--out", type=Path, default=Path("results/bench_workflow.parquet"))
    bench.add_argument("--repeats", type=_count, default=5, help="of the short steps (default: 5)")
    bench.set_defaults(command=_bench_workflow)
    _add_measurements(commands)
    return parser


def _add_measurements(commands) -> None:
    """The commands that measure a model directory (P1-1.5)."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("model", type=Path, metavar="MODEL", help="directory with config.json")
    shared.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    shared.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(float32)"
    )
    shared.add_argument("--seed", type=_count, default=0)
    shared.add_argument("--out", type=Path, help="where the table goes (default: results/…)")

    profile = commands.add_parser(
        "profile-rollout", parents=[shared], help="time prefill, decode, sampling and transfer"
    )
    profile.add_argument("--contexts", type=_positive, nargs="+", default=[512, 2048])
    profile.add_argument("--generations", type=_positive, nargs="+", default=[64, 128])
    profile.add_argument("--repeats", type=_positive, default=3)
    profile.add_argument("--warmup", type=_count, default=1)
    profile.set_defaults(command=_measure, tool="rollout_times", name="profile-rollout")

    sweep = commands.add_parser(
        "cache-sweep", parents=[shared], help="time prefills with and without the prefix cache"
    )
    sweep.add_argument("--prompts", type=_positive, nargs="+", default=[512, 2048])
    sweep.add_argument("--prefix-fractions", type=_share, nargs="+", default=[0.25, 0.5, 0.75])
    sweep.add_argument("--documents", type=_positive, default=5)
    sweep.add_argument("--warmup", type=_count, default=1)
    sweep.add_argument("--budget-mb", type=float, default=1024.0, help="of the prefix cache")
    sweep.add_argument("--tolerance", type=float, default=1e-3, help="of logits (0.001)")
    sweep.set_defaults(command=_measure, tool="cache_savings", name="cache-sweep")

    budget = commands.add_parser(
        "memory-budget", parents=[shared], help="memory by part, predicted and measured"
    )
    budget.add_argument("--context", type=_positive, default=2048)
    budget.add_argument("--batch", type=_positive, default=1)
    budget.set_defaults(command=_measure, tool="memory_parts", name="memory-budget")


def _add_generate(commands) -> None:
    sample = commands.add_parser("generate", help="sample completions of prompts from a file")
    sample.add_argument("model", type=Path, help="model directory in Hugging Face format")
    sample.add_argument(
        "prompts",
        type=Path,
        help='one prompt a line; or .jsonl or .parquet with "prompt" (text) or "tokens" (ids)',
    )
    sample.add_argument("--out", type=Path, default=Path("completions.parquet"))
    sample.add_argument("--jsonl", type=Path, help="write JSON lines there as well")
    sample.add_argument("--n", type=_positive, default=1, help="candidates of each prompt")
    sample.add_argument("--max-tokens", type=_positive, default=128)
    sample.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default: 1)")
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--min-p", type=float, default=0.0)
    sample.add_argument("--stop", nargs="+", default=[], metavar="TEXT")
    sample.add_argument("--stop-token-ids", nargs="+", type=int, default=[], metavar="ID")
    sample.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    sample.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    sample.add_argument("--max-rows", type=_positive, help="candidates that decode together")
    sample.add_argument("--prefix-cache-mb", type=float, default=0.0, help="0: none (default)")
    sample.set_defaults(command=_generate)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows (0, 1, 2, …)")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1, 2, …")
    return int(text)


def _tokens(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3")
    return [int(part) for part in parts]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _show(options) -> str:
    from ember.records.show import show

    return show(options.file, options.rows)


def _why(options) -> str:
    from ember.records.provenance import carrier
    from ember.records.trace import format_trace, trace

    text = format_trace(trace(options.product))
    source = carrier(options.product)
    if source != options.product:
        text = f"{options.product} stands beside {source}, which carries its provenance\n\n{text}"
    return text


def _config_schema(options) -> str:
    from ember.config.load import json_schema

    return json_schema().rstrip("\n")


def _archive(options) -> str:
    from ember.operations.archive import archive

    return f"kept in {archive(options.experiment, options.results, options.reports)}"


def _generate(options) -> str:
    import json
    import logging
    import time
    from datetime import UTC, datetime

    from ember.backends.sampling import SamplingParams
    from ember.commands.generate import generate, read_prompts, write_jsonl
    from ember.measure.system import hardware
    from ember.records.provenance import collect
    from ember.records.tables import write_table
    from ember.studies.p1.completions.tables import COMPLETIONS

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    fields = ("n", "max_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "seed")
    given = {name: getattr(options, name) for name in (*fields, "stop_token_ids", "ignore_eos")}
    runtime = {name: getattr(options, name) for name in ("device", "dtype", "max_rows")}
    runtime["prefix_cache_mb"] = options.prefix_cache_mb
    rows, stats = generate(
        model=options.model,
        prompts=read_prompts(options.prompts),
        sampling=SamplingParams(**given),
        **runtime,
    )
    provenance = collect(
        rule="ember generate",
        inputs=[options.model, options.prompts],
        outputs=[options.out],
        params=given | runtime,
        config={},
        seeds={"seed": options.seed},
        code=None,
        threads=hardware()["cores"],
        started=started,
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    write_table(options.out, rows, COMPLETIONS, provenance)
    if options.jsonl is not None:
        write_jsonl(options.jsonl, rows)
    return f"{options.out}: {len(rows)} completions\n{json.dumps(stats)}"


def _estimate(options) -> str:
    import json

    from ember.operations.estimate import estimate, format_estimate

    found = estimate(
        options.targets,
        profile=options.profile,
        config=options.config,
        every=options.all,
        cores=options.cores,
        jobs=options.jobs,
        folder=options.directory,
    )
    return json.dumps(found.as_dict(), indent=2) if options.json else format_estimate(found)


def _doctor(options) -> tuple[str, int]:
    import json

    from ember.operations.doctor.examine import examine
    from ember.operations.doctor.report import as_text

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report = examine(options.results, profile=options.profile, config=options.config, progress=say)
    text = json.dumps(report.to_dict(), indent=2) if options.json else as_text(report)
    return text, 0 if report.well else 1


def _check(options) -> str:
    from ember.commands.check import check_adapter

    return check_adapter(
        model=options.model,
        adapter=options.adapter,
        lora_scale=options.lora_scale,
        tokens=options.tokens,
        text=options.text,
        positions=options.positions,
        device=options.device,
        dtype=options.dtype,
        out=options.out,
    )


def _bench_workflow(options) -> str:
    from ember.records.provenance import source_root
    from ember.studies.workflow.cost.measure import time_workflow
    from ember.studies.workflow.cost.tables import WORKFLOW_STEPS

    params = {"repeats": options.repeats}
    return _kept(
        options.out,
        "bench-workflow",
        lambda: (time_workflow(source_root(), repeats=options.repeats), WORKFLOW_STEPS),
        params,
        scale="tiny",
    )


def _measure(options) -> str:
    from ember.commands import measurements
    from ember.measure.device import resolve
    from ember.model.folder import read_architecture

    read_architecture(options.model)  # before the seconds that torch takes
    outer = ("command", "tool", "name", "out")
    params = {key: value for key, value in vars(options).items() if key not in outer}
    params["device"] = resolve(options.device)
    out = options.out or Path("results") / f"{options.name.replace('-', '_')}.parquet"
    measure = getattr(measurements, options.tool)
    return _kept(
        out,
        options.name,
        lambda: measure(**params),
        params | {"model": str(options.model)},
        inputs=[str(options.model)],
        seeds={"seed": options.seed},
    )


def _kept(out: Path, name: str, measure, params: dict, *, inputs=(), seeds=None, scale=None) -> str:
    """Rows and schema of `measure`, written with provenance and shown."""
    import logging
    import time
    from datetime import UTC, datetime

    from ember.measure.system import hardware
    from ember.records.provenance import collect
    from ember.records.show import show
    from ember.records.tables import write_table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    rows, schema = measure()
    provenance = collect(
        rule=f"ember {name}",
        inputs=list(inputs),
        outputs=[out],
        params=params,
        config={"scale": scale} if scale else {},
        seeds=seeds or {},
        code=None,
        threads=hardware()["cores"],
        started=started,
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    write_table(out, rows, schema, provenance)
    return show(out, len(rows))


if __name__ == "__main__":
    sys.exit(main())
