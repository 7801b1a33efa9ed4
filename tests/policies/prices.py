"""Measured tables with round numbers, for the tests of the cost model: 4 layers, prompts of 100
tokens, 10 generated, of a shared prefix of 50; calls of 4 prompts × 2 candidates in 8 rows."""

from ember.policies.cost import Loop, Measured, Prices
from ember.policies.plan import Plan
from ember.studies.p1.learner.tables import LEARNER
from ember.studies.p1.lora_latency.tables import LORA_LATENCY
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE
from ember.studies.p1.restart.tables import RESTART_STORE, RESTART_SWEEP
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT
from tests.rows import frame

LAYERS = 4
LOOP = Loop(100, 10, 50, prompts=4, candidates=2, rows=8)
FULL, LAST = Plan.full(LAYERS), Plan.last_tokens(LAYERS, 100)
CORRECT = Plan.last_tokens(LAYERS, 100, correct=True)
BEHIND = Plan(0, LAYERS, 50, prefix_tokens=50)
# (plan, rank, frozen layers, boundaries): ms of prefill and correction, and whether it gives logits
TIMES = {
    (FULL, 0, 0, ()): (1000.0, 0.0, True),
    (FULL, 8, 0, ()): (1100.0, 0.0, True),
    (FULL, 0, 0, (2,)): (1010.0, 0.0, True),
    (BEHIND, 0, 0, ()): (600.0, 0.0, True),
    (BEHIND, 8, 0, ()): (660.0, 0.0, True),
    (BEHIND, 0, 0, (2,)): (610.0, 0.0, True),
    (Plan.restart(LAYERS, 2), 0, 0, (2,)): (500.0, 0.0, True),
    (Plan(2, LAYERS, 50, prefix_tokens=50), 0, 0, (2,)): (300.0, 0.0, True),
    (LAST, 0, 0, ()): (2.0, 0.0, False),
    (CORRECT, 8, 0, ()): (3.0, 40.0, False),
}
STEP = 0.9 / 9  # seconds of one more step of the call's rows


def restart(context=100, spread=(1.0,), depth=LAYERS, times=None):
    rows = []
    for (plan, rank, frozen, boundaries), (prefill, correction, logits) in (times or TIMES).items():
        work = vars(plan.fill(context, rank, frozen, boundaries))
        kept = {"kept_kv_bytes": 1000, "kept_hidden_bytes": 100 * len(boundaries)}
        kept |= {"kept_factor_bytes": 10 * rank, "kept_raw_key_bytes": 500 * (rank > 0)}
        rows += [
            {"context": context, "num_layers": depth, **work, **kept, "logits": logits}
            | {"prefill_ms": factor * prefill, "correction_ms": factor * correction, "repeat": n}
            for n, factor in enumerate(spread)
        ]
    return frame(RESTART_SWEEP, rows)


def rollout(spread=(1.0,), **change):
    """A call takes 0.9 s of decoding, 0.08 of sampling, 0.02 of transfer, and 0.5 s on the host;
    0.2 s more where candidates share no KV."""
    rows = []
    for candidates, prompts in ((2, 4), (1, 8)):
        here = {"context": 100, "generation": 10, "rows": 8, "prefix": 0}
        here |= {"candidates": candidates, "prompts": prompts, "point": f"{candidates}"}
        here |= {"weight_bytes": 2000, "peak_kv_bytes": 3000 * (3 - candidates)} | change
        for n, factor in enumerate(spread):
            decode = factor * 900.0 + 200.0 * (candidates == 1)
            times = {"prefill_ms": 4000.0, "decode_ms": decode, "sampling_ms": 80.0}
            times |= {"transfer_ms": 20.0, "total_ms": 4600.0 + decode}
            rows.append(here | times | {"repeat": n})
    return frame(ROLLOUT_THROUGHPUT, rows)


def learner(**change):
    """Micro-batches of 400 tokens: 2 s, 1.2 s with half of the layers frozen."""
    rows = []
    for form in ("independent", "shared_prompt"):
        for frozen, ms in ((0, 2000.0), (2, 1200.0)):
            here = {"context": 100, "generation": 10, "candidates": 2, "form": form}
            here |= {"frozen_layers": frozen, "tokens": 400, "ms": ms, "peak_gb": 6e-6}
            rows.append(here | change)
    return frame(LEARNER, rows)


def latency(**change):
    """Replacing the adapter takes a quarter of a second; rows of other switches are not it."""
    here = {"implementation": "ember", "keep": "device", "operation": "replace"}
    here |= {"status": "ok", "ms": 250.0}
    others = [{"keep": "host"}, {"operation": "apply"}, {"implementation": "peft"}]
    return frame(LORA_LATENCY, [here | change] + [here | {"ms": 9e9} | other for other in others])


def store(**change):
    """A device of 20 kB, 1 MB/s either way, and a large host."""
    here = {"to_host_gb_s": 1e-3, "to_device_gb_s": 1e-3, "device_bytes": 20_000}
    return frame(RESTART_STORE, [here | {"host_bytes": 10**9} | change])


def profile(prefill=(1000.0,), **change):
    """One rollout alone: 0.4 s after its prefill, of which 0.09 of a second are no phase's."""
    here = {"mode": "single", "status": "ok", "context": 100, "generation": 10, "batch": 1}
    here |= {"decode_ms": 270.0, "sampling_ms": 30.0, "transfer_ms": 10.0} | change
    rows = [here | {"prefill_ms": ms, "total_ms": ms + 400.0} for ms in prefill]
    return frame(ROLLOUT_PROFILE, rows)


def prices(loop=LOOP, resamples=100, seed=0, kind=Prices, **tables):
    made = {"rollout": rollout, "restart": restart, "store": store}
    made |= {"latency": latency, "learner": learner}
    tables = {name: tables.get(name, make()) for name, make in made.items()}
    return kind(Measured(**tables, num_layers=LAYERS), loop, resamples, seed)
