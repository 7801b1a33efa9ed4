"""`ember cache-sweep`: what the prefix cache saves, on any model and lengths."""

from ember.commands.shared import add_measurement, count, measured, positive, share


def add(commands) -> None:
    parser = add_measurement(
        commands, "cache-sweep", "time prefills with and without the prefix cache"
    )
    parser.add_argument("--prompts", type=positive, nargs="+", default=[512, 2048])
    parser.add_argument("--prefix-fractions", type=share, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--documents", type=positive, default=5)
    parser.add_argument("--warmup", type=count, default=1)
    parser.add_argument("--budget-mb", type=float, default=1024.0, help="of the prefix cache")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of logits (0.001)")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.studies.p1.prefix.measure import sweep_prefix
    from ember.studies.p1.prefix.summary import prefix_savings
    from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
    from ember.studies.p1.workload.make import make_workload

    def measure(*, model, documents, prompts, tolerance, seed, **settings) -> list[dict]:
        sweep = sweep_prefix(
            model=model,
            workload=make_workload(
                model=model, documents=documents, tokens=max(prompts), seed=seed
            ),
            documents=documents,
            prompts=prompts,
            tolerance=tolerance,
            seed=seed,
            **settings,
        )
        return prefix_savings(sweep, model=model, tolerance=tolerance, seed=seed)

    return measured(options, "cache-sweep", measure, PREFIX_SAVINGS)
