"""The fuser of a trained pair."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ember.c2c.fuser import Fuser, FuserShape, layer_map, save_fuser
from ember.c2c.pair import load_pair
from ember.c2c.train import Fusing
from ember.c2c.world import renamed, world_of
from ember.measure.device import resolve
from ember.optim.loop import run, state_key
from ember.studies.c2c.models.make import LOG_ROWS, mixed, recipe_of, training_rows
from ember.studies.c2c.models.tables import C2C_TRAINING
from ember.studies.steps import makes


@makes(C2C_TRAINING)
def train_fuser(
    *,
    kind: str,
    sharer: str | Path,
    receiver: str | Path,
    world: Mapping,
    settings: Mapping,
    world_seed: int,
    fuser: str | Path,
    state: str | Path,
    runtime: Mapping,
    code: str = "",
) -> list[dict]:
    """Trains a fuser and writes it to the folder `fuser`. `kind` self: the receiver is its own
    sharer, so that what the fuser adds is its weights and no other model's knowledge."""
    made, device = world_of(world), resolve(runtime["device"])
    pair = load_pair(receiver if kind == "self" else sharer, receiver, None, device)
    torch.manual_seed(world_seed)
    learner = Fuser(
        FuserShape.of(pair.sharer.arch, pair.receiver.arch, settings["hidden"]),
        layer_map(
            settings["layer_map"], pair.sharer.arch.num_layers, pair.receiver.arch.num_layers
        ),
        rotated=settings["rotated"],
        noise=settings["noise"],
    ).to(device)
    training = settings["training"]
    names = np.arange(made.vocab_size) if kind == "self" else renamed(made, world_seed)
    task = Fusing(
        pair.sharer,
        pair.receiver,
        learner,
        made,
        recipe_of(training, world_seed),
        names=names,
        shared="receiver" if kind == "self" else "sharer",
        warm=settings["warm"],
        warm_until=settings["warm_until"],
        hold=settings["hold"],
        autocast=mixed(runtime),
    )
    rows = run(
        task,
        training["steps"],
        log_every=max(1, training["steps"] // LOG_ROWS),
        state=Path(state),
        key=state_key(kind=kind, world=made, settings=dict(settings), seed=world_seed, code=code),
    )
    save_fuser(learner, fuser, {"seed": world_seed, "kind": kind})
    return training_rows(rows, world_seed, f"{kind}_fuser")
