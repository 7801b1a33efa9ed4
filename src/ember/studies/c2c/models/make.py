"""The pair's models, trained in their world."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ember.c2c.pair import Reader, Smear, load_reader, save_reader
from ember.c2c.train import Lookup, Recipe, inject_outliers
from ember.c2c.world import renamed, world_of
from ember.measure.device import resolve
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.optim.loop import run, state_key
from ember.studies.c2c.models.tables import C2C_TRAINING
from ember.studies.steps import makes

LOG_ROWS = 30


@makes(C2C_TRAINING)
def train_reader(
    *,
    role: str,
    world: Mapping,
    reader: Mapping,
    world_seed: int,
    model: str | Path,
    state: str | Path,
    runtime: Mapping,
    code: str = "",
) -> list[dict]:
    """Trains the sharer or the receiver of a world and writes it to the folder `model`."""
    made, settings = world_of(world), reader["training"]
    device = resolve(runtime["device"])
    fields = dict(reader["architecture"]) | {"vocab_size": made.vocab_size}
    arch = Architecture.make(**fields)
    seed = 2 * world_seed + (role == "receiver")
    learner = Reader(random_decoder(arch, seed, device), Smear(arch.hidden_size).to(device))
    names = renamed(made, world_seed) if role == "sharer" else None
    task = Lookup(
        learner, made, role, recipe_of(settings, world_seed), names=names, autocast=mixed(runtime)
    )
    rows = run(
        task,
        settings["steps"],
        log_every=max(1, settings["steps"] // LOG_ROWS),
        state=Path(state),
        key=state_key(role=role, world=made, reader=dict(reader), seed=world_seed, code=code),
    )
    if role == "sharer" and reader["outliers"] != 1:
        inject_outliers(learner, reader["outliers"])
    save_reader(learner, model, {"seed": world_seed, "role": role})
    return training_rows(rows, world_seed, role)


@makes(C2C_TRAINING)
def tune_receiver(
    *,
    receiver: str | Path,
    world: Mapping,
    training: Mapping,
    steps: int,
    world_seed: int,
    model: str | Path,
    state: str | Path,
    runtime: Mapping,
    code: str = "",
) -> list[dict]:
    """The control that learns the fuser's questions without a channel: all of the receiver's
    weights are fine-tuned on its own copy."""
    made, device = world_of(world), resolve(runtime["device"])
    learner = load_reader(receiver, device, torch.float32).requires_grad_(True)
    recipe = recipe_of(dict(training) | {"steps": steps}, world_seed + 1)
    task = Lookup(learner, made, "receiver", recipe, asked="union", autocast=mixed(runtime))
    rows = run(
        task,
        steps,
        log_every=max(1, steps // LOG_ROWS),
        state=Path(state),
        key=state_key(world=made, recipe=recipe, code=code, tuned=True),
    )
    save_reader(learner, model, {"seed": world_seed, "role": "tuned"})
    return training_rows(rows, world_seed, "tuned")


def recipe_of(settings: Mapping, seed: int) -> Recipe:
    """A recipe from a section `training`."""
    return Recipe(**{name: settings[name] for name in settings}, seed=seed)


def mixed(runtime: Mapping) -> torch.dtype | None:
    """bfloat16 on a GPU unless float32 is asked for."""
    on_gpu = resolve(runtime["device"]) != "cpu"
    return torch.bfloat16 if on_gpu and runtime["dtype"] != "float32" else None


def training_rows(rows: list[dict], seed: int, model: str) -> list[dict]:
    """Rows of C2C_TRAINING from a log."""
    said = {"seed": seed, "model": model, "weights": "trained", "evidence": "measured"}
    return [{name: row.get(name) for name in C2C_TRAINING.names} | said for row in rows]
