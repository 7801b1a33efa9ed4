"""One real training step of each variant, its memory read phase by phase."""

import gc
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ember.measure.device import resolve
from ember.measure.live import live_tensors
from ember.measure.memory import NotEnoughMemory, require
from ember.studies.lowbit.memory.tables import LOWBIT_MEMORY, PHASES
from ember.studies.measured import blank, machine
from ember.studies.steps import makes

log = logging.getLogger(__name__)

RATE = 1e-4


@makes(LOWBIT_MEMORY)
def measure_steps(
    *,
    model: str | Path,
    tokens: int,
    variants: Sequence[Mapping],
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of LOWBIT_MEMORY: AdamW on dense weights, then the variants. One that does not fit is
    skipped."""
    device = resolve(device)
    about = machine(model, device, dtype)
    about |= {"tokens": tokens, "method": "allocator" if "cuda" in device else "live tensors"}
    rows = []
    for variant in (None, *variants):
        gc.collect()
        name = "adamw" if variant is None else name_of(variant)
        try:
            found = step_memory(
                model, variant, draw_tokens(model, tokens, seed), device, dtype, seed
            )
        except NotEnoughMemory as error:
            reason = str(error).splitlines()[0]
            zeros = {c.name: 0 for c in LOWBIT_MEMORY.columns if c.type == "int"}
            found = [zeros | {"phase": phase, "bytes_per_parameter": 0.0} for phase in PHASES]
            found = [row | {"status": "skipped", "reason": reason} for row in found]
        rows += [blank(LOWBIT_MEMORY, variant=name, **about | row) for row in found]
        log.info("%s: %s", name, [row["peak_bytes"] for row in found])
    return rows


def name_of(variant: Mapping) -> str:
    """A variant in a few words."""
    parts = [variant["arm"], f"{variant['states']} states"]
    parts += ["head"] if variant["head"] else []
    parts += [] if variant["checkpoint"] else ["no checkpointing"]
    parts += [f"last {variant['last_layers']}"] if variant["last_layers"] else []
    return ", ".join(parts)


def draw_tokens(model: str | Path, count: int, seed: int) -> list[int]:
    """Random tokens: memory does not depend on which they are. One more, as the last target."""
    from ember.model.folder import read_architecture

    draw = random.Random(seed)
    return [draw.randrange(read_architecture(model).vocab_size) for _ in range(count + 1)]


def step_memory(
    model: str | Path,
    variant: Mapping | None,
    tokens: Sequence[int],
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """A row for each phase of one step on one sequence."""
    import torch

    from ember.lowbit.step import checkpoint_layers
    from ember.lowbit.training import bytes_by_kind
    from ember.model.folder import read_architecture
    from ember.optim.loss import next_token_loss

    arch, number = read_architecture(model), getattr(torch, dtype)
    batch = torch.tensor([tokens], device=device)
    require(_least(arch.parameter_count(), variant, number.itemsize), device, "the step")
    with _meter(device) as mark:
        decoder, layers, update = _loaded(model, variant, device, number, seed)
        if variant is None or variant["checkpoint"]:
            checkpoint_layers(decoder)
        peaks = [mark()]
        loss = next_token_loss(decoder, batch)
        peaks.append(mark())
        held = update(loss)
        peaks.append(mark())
    kinds = bytes_by_kind(decoder, layers) | held
    trained = sum(one.in_features * one.out_features for one in layers) or arch.parameter_count()
    rows = []
    for phase, (peak, driver) in zip(PHASES, peaks, strict=True):
        # AdamW makes its states in the first update.
        standing = kinds | ({} if phase == "backward" or layers else {"states": 0})
        rows.append(
            {
                "phase": phase,
                "parameters": trained,
                "peak_bytes": peak,
                "driver_bytes": driver,
                **{f"{kind}_bytes": size for kind, size in standing.items()},
                "rest_bytes": max(0, peak - sum(standing.values())),
                "bytes_per_parameter": peak / trained,
                "loss": None if phase == "load" else float(loss.detach()),
            }
        )
    return rows


def _loaded(model, variant: Mapping | None, device: str, number, seed: int) -> tuple:
    """The decoder, its layers that train themselves, and what a loss does to them, which gives the
    bytes of states that it made."""
    import torch

    from ember.lowbit.step import load_trainable
    from ember.lowbit.training import ARMS, Control
    from ember.model.checkpoint import load_decoder

    if variant is None:
        decoder = load_decoder(model, device, number)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE)

        def step(loss) -> dict:
            loss.backward()
            optimizer.step()
            states = (t for one in optimizer.state.values() for t in one.values())
            return {"states": sum(t.nbytes for t in states)}

        return decoder, [], step
    control = Control(
        ARMS[variant["arm"]],
        states=variant["states"],
        chunk_rows=variant["chunk_rows"],
        generator=torch.Generator(device).manual_seed(seed),
    )
    options = {name: variant[name] for name in ("last_layers", "head")}
    decoder, layers = load_trainable(model, control, device, number, **options)

    def learn(loss) -> dict:
        with control.update(RATE):
            loss.backward()
        return {}

    return decoder, layers, learn


def _least(parameters: int, variant: Mapping | None, itemsize: int) -> int:
    """Bytes without which a step need not be tried."""
    if variant is None:
        return 4 * itemsize * parameters  # weights, gradients, two moments
    master = {"master_float32": 4, "master_bfloat16": 2}.get(variant["arm"], 0)
    states = {"float32": 8, "int8": 1, "int4": 0.5}.get(variant["states"], 0)
    return int(parameters * (0.5625 + master + states))


@contextmanager
def _meter(device: str) -> Iterator[Callable[[], tuple[int, float | None]]]:
    """A function that gives the peak of tensors since it was asked last, and the driver's use."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

        def mark() -> tuple[int, float | None]:
            peak = torch.cuda.max_memory_allocated(device) - before
            torch.cuda.reset_peak_memory_stats(device)
            free, total = torch.cuda.mem_get_info(device)
            return peak, float(total - free)

        yield mark
        return
    with live_tensors() as live:

        def mark() -> tuple[int, float | None]:
            peak, live.peak_bytes = live.peak_bytes, live.bytes
            return peak, None

        yield mark
