"""Accuracies of real pairs with intervals, beside what was published for them."""

from collections.abc import Sequence

import numpy as np

from ember.measure.statistics import mean, paired
from ember.studies.c2c.compare import adjust
from ember.studies.c2c.real.tables import C2C_REAL, C2C_REAL_ANSWERS, C2C_REAL_STAGES
from ember.studies.measured import blank
from ember.studies.rows import better_of, grouped, records
from ember.studies.steps import makes

# Cache-to-Cache (arXiv 2510.03215), receiver Qwen3-0.6B, sharer Qwen2.5-0.5B-Instruct: accuracy,
# and ms a question where it is given.
PAIR = "qwen3-0.6b-qwen2.5-0.5b"
PUBLISHED = {
    "openbookqa": {
        "receiver": (0.3920, None),
        "sharer": (0.4560, None),
        "text": (0.4400, 810.0),
        "c2c": (0.5260, 300.0),
    },
    "arc-challenge": {
        "receiver": (0.4104, None),
        "sharer": (0.4209, None),
        "text": (0.4948, 1000.0),
        "c2c": (0.5452, 360.0),
    },
}
QUESTIONS = {"openbookqa": 500, "arc-challenge": 1150}
WITHOUT = {
    "self": "no fuser of a receiver with itself is published, and none is trained at this scale",
    "tuned": "no model is fine-tuned at this scale",
}
NO_FUSER = "no fuser was given for this pair (c2c.real.pairs)"
NO_PAIR = "real models and data sets are named at scale paper (c2c.real)"


@makes(C2C_REAL)
def summarise_real(answers: Sequence, stages: Sequence, *, resamples: int, seed: int) -> list[dict]:
    """Rows of C2C_REAL from tables of answers and stages, one of each a pair and benchmark."""
    rng = np.random.default_rng(seed)
    rows = records(answers, C2C_REAL_ANSWERS)
    times = grouped(records(stages, C2C_REAL_STAGES), "pair", "benchmark", "method")
    found = []
    for (pair, benchmark), group in grouped(rows, "pair", "benchmark").items():
        methods = {method: some for (method,), some in grouped(group, "method").items()}
        for name, by in (("routing", "confidence"), ("oracle", "correct")):
            methods[name] = better_of(methods["receiver"], methods["sharer"], by)
        some = [_row(name, of, methods, rng, resamples) for name, of in methods.items()]
        adjust(some, "p", "p_holm")
        for row in some:
            spent = times.get((pair, benchmark, row["method"]), [])
            for one in spent:
                row |= {f"{one['stage']}_ms": one["ms"], "batch_size": one["batch_size"]}
            row["total_ms"] = sum(one["ms"] for one in spent) if spent else None
        missing = {m: NO_FUSER for m in ("c2c", "shuffled", "zero") if m not in methods} | WITHOUT
        found += some + [_skipped(pair, benchmark, *one) for one in missing.items()]
    if not rows:
        found = [
            _skipped(PAIR, benchmark, method, NO_PAIR)
            for benchmark, methods in PUBLISHED.items()
            for method in methods
        ]
    return found + _published()


def _row(method: str, rows: Sequence[dict], methods: dict, rng, resamples: int) -> dict:
    said = {name: rows[0][name] for name in C2C_REAL.names if name in rows[0]}
    row = blank(C2C_REAL) | said | {"method": method, "n": len(rows)}
    right = np.array([[one["correct"], one["forced_correct"]] for one in rows], float)
    for column, name in enumerate(("accuracy", "forced_accuracy")):
        start = name.removesuffix("accuracy")
        found = mean(right[:, column], rng, resamples)
        row |= dict(zip((name, f"{start}low", f"{start}high"), found, strict=True))
    for name, other, p in (("gain", "receiver", "p"), ("change", "c2c", "change_p")):
        if method == other or other not in methods:
            continue
        test = paired(right[:, 0], [one["correct"] for one in methods[other]], rng, resamples)
        row |= {name: test["difference"], f"{name}_low": test["low"], f"{name}_high": test["high"]}
        row[p] = test["p"]
    counts = {x: sum(one["answer"] == x.upper() for one in rows) for x in "abcde"}
    row |= {f"answered_{x}": count / len(rows) for x, count in counts.items()}
    for name, column in (("failures", "failed"), ("output_tokens",) * 2, ("bytes",) * 2):
        row[name] = float(np.mean([one[column] for one in rows]))
    return row


def _skipped(pair: str, benchmark: str, method: str, reason: str) -> dict:
    said = {"pair": pair, "benchmark": benchmark, "method": method, "model": pair}
    outcome = {"status": "skipped", "reason": reason}
    return blank(C2C_REAL) | said | outcome | {"evidence": "measured", "weights": "pretrained"}


def _published() -> list[dict]:
    """What the paper says, as reference."""
    said = {"pair": PAIR, "model": PAIR, "evidence": "reference", "weights": "pretrained"}
    return [
        blank(C2C_REAL, benchmark=benchmark, n=QUESTIONS[benchmark], method=method, **said)
        | {"accuracy": accuracy, "total_ms": ms}
        for benchmark, methods in PUBLISHED.items()
        for method, (accuracy, ms) in methods.items()
    ]
