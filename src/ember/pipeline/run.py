"""The order in which each stage computes, sends and receives.

Contract. Nothing a stage sends or waits for depends on what it queues later. So a run goes through
even where queueing itself waits for everything queued before, as a CUDA host does when a kernel is
loaded or memory is allocated while a receive waits on the device: receives are posted ahead only
over wires for which that is no danger (`wire.ahead`).
"""

from collections.abc import Sequence

from ember.pipeline.plan import Unit


def run_first(
    units: Sequence[Unit], stages: Sequence, inputs: Sequence, wire, timeline, *, overlap: bool
) -> None:
    """Tokens in, hidden states out; replies are waited for as late as the order allows.

    `stages` by micro-batch; `inputs` by unit: tokens (B, T) of a prefill, None in decoding.
    """
    pending = {}
    for unit, given in zip(units, inputs, strict=True):
        stage = stages[unit.micro_batch]
        if unit.micro_batch in pending:
            wire.take(pending.pop(unit.micro_batch))
        start = timeline.mark()
        hidden = stage.decode() if unit.step else stage.prefill(given, ends=unit.samples)
        timeline.add(unit.phase, unit, start, timeline.mark())
        wire.send(hidden, unit)
        if unit.replies:
            posted = wire.post(stage.tokens, unit, back=True)
            if overlap:
                pending[unit.micro_batch] = posted
            else:
                wire.take(posted)


def run_last(
    units: Sequence[Unit], stages: Sequence, inputs: Sequence, wire, timeline, *, overlap: bool
) -> None:
    """Hidden states in, sampled tokens back.

    `inputs` by unit: memory for the hidden states (B, T, H) of a prefill, None in decoding.
    """
    posted = None

    def post(index: int):
        unit = units[index]
        return wire.post(stages[unit.micro_batch].inbox if unit.step else inputs[index], unit)

    for index, unit in enumerate(units):
        stage = stages[unit.micro_batch]
        current = post(index) if posted is None else posted
        posted = None
        if wire.ahead and index + 1 < len(units) and not _answers(units, index, overlap):
            posted = post(index + 1)
        wire.take(current)
        start = timeline.mark()
        logits = stage.decode() if unit.step else stage.prefill(inputs[index], ends=unit.samples)
        middle = timeline.mark()
        timeline.add(unit.phase, unit, start, middle)
        if unit.samples:
            stage.sample(logits)
            timeline.add("sampling", unit, middle, timeline.mark())
        if unit.replies:
            wire.send(stage.tokens, unit, back=True)


def _answers(units: Sequence[Unit], index: int, overlap: bool) -> bool:
    """Whether the next message answers to what this unit sends back: its room is not free yet."""
    unit, following = units[index], units[index + 1]
    return unit.replies and (not overlap or following.micro_batch == unit.micro_batch)
