"""A LoRA update on completions: one micro-batch, its prompts shared or not (P1-6.1).

What an update takes does not depend on what the tokens are, so completions are cut from documents
of the workload as prompts are. The loss is their cross-entropy; a policy gradient only weighs it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ember.measure.clock import timed
from ember.measure.cost import update_operations
from ember.measure.device import device_name
from ember.measure.memory import forget_peak, peak_gb
from ember.studies.measured import in_order, in_turns, on_device
from ember.studies.p1.learner.tables import FORMS, LEARNER
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """A micro-batch, its form and how many layers are frozen, as in LEARNER."""

    prompts: int
    candidates: int
    context: int
    generation: int
    form: str
    frozen_layers: int

    @property
    def point(self) -> str:
        return f"{self.prompts}x{self.candidates}, {self.context}/{self.generation}"

    def passes(self) -> list[tuple[int, int, int, int]]:
        """What runs through the layers, as `measure.cost.update_operations` takes it."""
        rows, before = self.prompts * self.candidates, self.context - 1
        if self.form == "shared_prompt":
            return [(self.prompts, before, 0, 1), (rows, self.generation, before, self.generation)]
        return [(rows, before + self.generation, 0, self.generation)]


@makes(LEARNER)
def time_updates(
    *,
    model: str | Path,
    workload,
    points: Sequence[Mapping],
    frozen_fractions: Sequence[float],
    learning_rate: float,
    rank: int,
    alpha: float,
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of LEARNER: `repeats` updates of each point in both forms, for each frozen part.

    Forms and frozen parts take turns in an order drawn anew for each repeat.
    """
    from ember.measure.roofline import matmul_tflops
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    peak = matmul_tflops(device, dtype, repeats=20 if device != "cpu" else 7)
    about |= {"rank": rank, "matmul_tflops": peak, "device_name": device_name(device)}
    decoder.requires_grad_(False)
    depth, streams = decoder.arch.num_layers, read_workload(workload)
    frozen = sorted({int(fraction * depth) for fraction in frozen_fractions})
    learner = Learner(decoder, frozen, rank, alpha, learning_rate, seed)
    todo = [
        Update(**point, form=f, frozen_layers=n) for point in points for f in FORMS for n in frozen
    ]
    rows = []
    name = "{0.point}, {0.form}, {0.frozen_layers} layers frozen".format
    for turn, update in in_turns(todo, warmup, repeats, seed, name, log):
        batch = micro_batch(streams, update, device)
        forget_peak(device)
        ms, loss = timed(lambda u=update, b=batch: learner.step(u, *b), device)
        if turn < 0:
            continue
        operations = update_operations(decoder.arch, update.passes(), update.frozen_layers).total
        tflops = operations / ms / 1e9
        rows.append(
            vars(update)
            | {"point": update.point, "repeat": turn, "ms": ms, "loss": loss.item()}
            | {"tokens": sum(count * each for count, each, *_ in update.passes())}
            | {"operations": operations, "tflops": tflops, "share": tflops / peak}
            | {"peak_gb": peak_gb(device), **about}
        )
    return in_order(rows, LEARNER)


class Learner:
    """An adapter of q, k, v and o for each number of frozen layers, with AdamW on its B."""

    def __init__(self, decoder, frozen, rank: int, alpha: float, learning_rate: float, seed: int):
        import torch

        from ember.lora.adapter import draw_adapter
        from ember.lora.branch import Branches

        self.decoder, self._branches, self._optimizers = decoder, Branches(decoder), {}
        adapter = draw_adapter(decoder, rank=rank, alpha=alpha, seed=seed)
        for first in frozen:
            part = adapter.only(layers=range(first, decoder.arch.num_layers))
            self._branches.attach(f"from-{first}", part, trainable=True)
            factors = self._branches.parameters(f"from-{first}")
            for a in factors[::2]:
                a.requires_grad_(False)
            self._optimizers[first] = torch.optim.AdamW(factors[1::2], lr=learning_rate, fused=True)

    def adapter(self, frozen_layers: int):
        """A copy of the adapter as it is now."""
        return self._branches.adapter(f"from-{frozen_layers}")

    def step(self, update: Update, prompts, completions):
        """One update; the mean loss before it, a tensor."""
        from ember.optim.completions import completion_losses

        if self._branches.active != (name := f"from-{update.frozen_layers}"):
            self._branches.activate(name)
        shared = update.form == "shared_prompt"
        loss = completion_losses(self.decoder, prompts, completions, shared_prompt=shared).mean()
        loss.backward()
        optimizer = self._optimizers[update.frozen_layers]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def micro_batch(streams, update: Update, device: str):
    """Prompts (P, N) and completions (P, C, T) cut from a workload's documents."""
    import torch

    prompts = [streams.prompt(p, update.context, 0) for p in range(update.prompts)]
    completions = [
        [
            streams.prompt((p + c) % len(streams.documents), update.generation, 0)
            for c in range(update.candidates)
        ]
        for p in range(update.prompts)
    ]
    return torch.tensor(prompts, device=device), torch.tensor(completions, device=device)
