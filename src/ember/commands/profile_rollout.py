"""`ember profile-rollout`: what the workflow measures of a rollout, on any model and lengths."""

from ember.commands.shared import add_measurement, count, measured, positive


def add(commands) -> None:
    parser = add_measurement(
        commands, "profile-rollout", "time prefill, decode, sampling and transfer"
    )
    parser.add_argument("--contexts", type=positive, nargs="+", default=[512, 2048])
    parser.add_argument("--generations", type=positive, nargs="+", default=[64, 128])
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--warmup", type=count, default=1)
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.studies.p1.profile.measure import profile_rollout
    from ember.studies.p1.profile.summary import prefill_share
    from ember.studies.p1.profile.tables import PREFILL_SHARE
    from ember.studies.p1.workload.make import make_workload

    def measure(*, model, contexts, repeats, seed, **settings) -> list[dict]:
        profile = profile_rollout(
            model=model,
            workload=make_workload(model=model, documents=repeats, tokens=max(contexts), seed=seed),
            contexts=contexts,
            repeats=repeats,
            seed=seed,
            **settings,
        )
        return prefill_share([row for row in profile if row["status"] == "ok"])

    return measured(options, "profile-rollout", measure, PREFILL_SHARE)
