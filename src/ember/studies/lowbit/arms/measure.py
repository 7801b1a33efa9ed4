"""Packed weights of one trained model, trained on by every arm from the same start."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

from ember.measure.progress import Progress
from ember.studies.lowbit.arms.tables import ARM_RUNS, DECAY_RUNS
from ember.studies.measured import on_device
from ember.studies.steps import makes

log = logging.getLogger(__name__)

DECAYED = 64  # rows of a layer whose weight decay is tested by itself


@makes(ARM_RUNS, DECAY_RUNS)
def train_arms(
    *,
    model: str | Path,
    corpus,
    variants: Sequence[Mapping],
    steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    weight_decay: float,
    decay: Mapping,
    chunk_rows: int,
    headroom: float,
    number: int,
    validation_tokens: int,
    validations: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of ARM_RUNS and DECAY_RUNS of the seed `number`: all arms see the same batches. Norms,
    embedding and head stay."""
    import torch

    from ember.lowbit.training import ARMS, Control, bytes_by_kind, make_trainable
    from ember.optim.lm import BITS_PER_NAT, Windows, evaluate
    from ember.optim.loss import next_token_loss
    from ember.optim.optimizers import linear_rate
    from ember.studies.shared.corpora.make import join_corpora
    from ember.studies.shared.models.train import token_stream
    from ember.text.tokenizer import load_tokenizer

    documents, words = join_corpora([corpus]), load_tokenizer(model)
    streams = {split: token_stream(documents, words, split) for split in ("train", "validation")}
    device, dense, about = on_device(model, device, dtype, named=True)
    every = max(1, steps // validations)
    progress, rows, decays = Progress(log, len(variants)), [], []
    weight = dense.layers[-1].mlp.down_proj.weight[:DECAYED]
    windows = Windows(streams["train"], sequence_length, number)
    for variant in variants:
        decoder = deepcopy(dense)
        control = Control(
            ARMS[variant["arm"]],
            states=variant["states"],
            weight_decay=weight_decay,
            chunk_rows=chunk_rows,
            generator=torch.Generator(device).manual_seed(number),
        )
        layers = make_trainable(decoder, control, headroom=headroom)
        losses, changed = [], []
        for step in range(steps + 1):
            if step % every == 0 or step == steps:
                decoder.eval()
                score = evaluate(
                    decoder,
                    streams["validation"],
                    tokens=validation_tokens,
                    length=sequence_length,
                    batch_size=batch_size,
                )
                size = bytes_by_kind(decoder, layers)
                weights = sum(one.in_features * one.out_features for one in layers)
                rows.append(
                    {
                        **variant,
                        "seed": number,
                        "step": step,
                        "train_loss": _mean(losses),
                        "val_loss": -float(score.log2_probs.mean()) / BITS_PER_NAT,
                        "changed": _mean(changed),
                        "weight_bytes": (size["packed"] + size["master"]) / weights,
                        "state_bytes": size["states"] / weights,
                        "val_tokens": score.log2_probs.size,
                        **about,
                    }
                )
                losses, changed = [], []
            if step < steps:
                batch = torch.from_numpy(windows.batch(step * batch_size, batch_size))
                rate = linear_rate(step, steps, learning_rate, 0, 0.05)
                with control.update(rate):
                    loss = next_token_loss(decoder, batch.to(device))
                    loss.backward()
                losses.append(loss.detach())
                changed.append(control.changed / control.codes)
        shrunk = _decayed(weight, variant, headroom=headroom, number=number, **decay)
        decays.append({**variant, "seed": number} | shrunk | about)
        progress.step(f"{variant['arm']}, {variant['states']}, seed {number}")
    return rows, decays


def _decayed(weight, variant, *, rate: float, steps: int, headroom: float, number: int) -> dict:
    """What weight decay without gradients takes of a weight's packed form."""
    import torch

    from ember.lowbit.training import ARMS, Control, TrainedLinear
    from ember.model.packed import LinearNVFP4

    control = Control(
        ARMS[variant["arm"]],
        states=variant["states"],
        weight_decay=1.0,
        eps=1e-4,  # stands for the size of gradients: fed-back errors are counted in it
        chunk_rows=len(weight),
        generator=torch.Generator(weight.device).manual_seed(number),
    )
    linear = TrainedLinear(LinearNVFP4.of(weight, headroom=headroom), control)
    before, values = linear.layer.matrix.dense(), _values(linear)
    nothing = [weight.new_zeros(1, size) for size in (linear.in_features, linear.out_features)]
    for _ in range(steps):
        with control.update(rate):
            linear.learn(*nothing)

    def left(now) -> float:
        return float((now.float() * before).sum() / before.square().sum())

    return {
        "steps": steps,
        "rate": rate,
        "wanted": 1 - (1 - rate) ** steps,
        "decayed": 1 - left(linear.layer.matrix.dense()),
        "master_decayed": 1 - left(linear.master) if control.arm.master else None,
        "changed": float((_values(linear) != values).float().mean()),
    }


def _values(linear):
    """What the codes stand for (0 has two): the weights in units of their scales."""
    from ember.formats import e2m1

    return e2m1.decode(linear.layer.quantised().codes)


def _mean(values: list) -> float | None:
    return float(sum(values) / len(values)) if values else None
