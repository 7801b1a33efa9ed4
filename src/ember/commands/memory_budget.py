"""`ember memory-budget`: memory by part (weights, KV, activations, gradients, optimizer)."""

from ember.commands.shared import add_measurement, measured, positive


def add(commands) -> None:
    parser = add_measurement(commands, "memory-budget", "memory by part, predicted and measured")
    parser.add_argument("--context", type=positive, default=2048)
    parser.add_argument("--batch", type=positive, default=1)
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.studies.p1.memory.measure import memory_budget
    from ember.studies.p1.memory.tables import MEMORY_BUDGET

    return measured(options, "memory-budget", memory_budget, MEMORY_BUDGET)
