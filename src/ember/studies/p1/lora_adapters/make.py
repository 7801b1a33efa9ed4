"""Adapters to align and to time: PEFT's own, a drawn one, a trained one (P1-3.4)."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ember.measure.device import resolve
from ember.model.folder import weights_kind
from ember.records.atomic import atomic_dir
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes()
def make_adapters(
    *,
    model: str | Path,
    workload,
    adapters: Path,
    settings: Mapping,
    device: str,
    dtype: str,
    seed: int,
) -> list[str]:
    """Writes folders in PEFT's format below `adapters`; returns their names.

    `init` and `perturbed` are written by PEFT itself, `synthetic` and `trained` here. Random
    weights have nothing to train on: there `trained` is left out.
    """
    import torch

    from ember.lora.adapter import draw_adapter
    from ember.lora.peft import save_adapter
    from ember.model.checkpoint import load_decoder
    from ember.studies.p1.workload.make import read_workload

    decoder = load_decoder(model, resolve(device), torch.float32)
    rank, alpha = settings["rank"], settings["alpha"]
    with atomic_dir(Path(adapters)) as folder:
        _write_by_peft(model, decoder, folder, settings, seed)
        size = {"rank": rank, "alpha": alpha, "b_std": settings["b_std"]}
        drawn = draw_adapter(decoder, **size, seed=seed + 1, name="synthetic")
        save_adapter(drawn, folder / "synthetic", arch=decoder.arch, base=Path(model).name)
        names = ["init", "perturbed", "synthetic"]
        if weights_kind(model) != "random" and settings["train_steps"]:
            trained = train_adapter(decoder, read_workload(workload), settings, seed)
            save_adapter(trained, folder / "trained", arch=decoder.arch, base=Path(model).name)
            names.append("trained")
    return names


def train_adapter(decoder, streams, settings: Mapping, seed: int):
    """An adapter after some AdamW steps on the workload's documents, by next-token prediction."""
    import torch

    from ember.lora.adapter import draw_adapter
    from ember.lora.branch import Branches
    from ember.optim.lm import Windows
    from ember.optim.loss import next_token_loss

    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    branches = Branches(decoder)
    begin = draw_adapter(decoder, rank=settings["rank"], alpha=settings["alpha"], seed=seed)
    branches.attach("trained", begin, trainable=True)
    branches.activate("trained")
    optimizer = torch.optim.AdamW(
        branches.parameters("trained"), lr=settings["learning_rate"], weight_decay=0.0
    )
    import numpy as np

    windows = Windows(np.concatenate(streams.documents), settings["train_tokens"], seed)
    device = decoder.embed_tokens.weight.device
    losses = []
    for step in range(settings["train_steps"]):
        batch = torch.from_numpy(windows.batch(step * 4, 4)).to(device)
        loss = next_token_loss(decoder, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    log.info("%d steps of an adapter: loss %.3f at first, %.3f at last", len(losses), first, last)
    found = branches.adapter("trained")
    branches.detach("trained")
    return found


def _write_by_peft(model, decoder, folder: Path, settings: Mapping, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from ember.lora.adapter import ATTENTION
    from ember.model.reference import load_peer

    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=list(ATTENTION),
        task_type="CAUSAL_LM",
    )
    peer = get_peft_model(load_peer(model, decoder), config)
    peer.save_pretrained(str(folder / "init"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator) * settings["b_std"]
                parameter.copy_(noise)
    peer.save_pretrained(str(folder / "perturbed"))
