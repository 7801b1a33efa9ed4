"""One training step of a large decoder in little memory: loaded, run and updated by layers (L-6.3).

Contract. A decoder is packed layer by layer as it is loaded, so that the device never holds a dense
layer beside more than itself. In the step every layer is run again for its gradient (checkpointing)
and updates its weights as its gradient passes; no gradient of a weight outlives that.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ember.lowbit.training import Control, TrainedLinear, first_trained, pack, pack_head
from ember.model.checkpoint import load_decoder, random_decoder
from ember.model.decoder import Decoder
from ember.model.folder import read_architecture, read_contents
from ember.optim.loop import BadTraining


def load_trainable(
    folder: str | Path,
    control: Control,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    last_layers: int | None = None,
    head: bool = False,
    headroom: float = 1.2,
) -> tuple[Decoder, list[TrainedLinear]]:
    """A model directory's decoder whose last layers (all by default) are packed and train.

    `head`: also the head, untied from the embedding where it is tied. What does not train is dense,
    in `dtype`. Random weights are drawn layer by layer on the device.
    """
    arch = read_architecture(folder)
    first = first_trained(arch.num_layers, last_layers)
    outer, layers = _by_layer(folder, device, dtype)
    found: list[TrainedLinear] = []
    for index, layer in enumerate(layers):
        layer.to(device).requires_grad_(False)
        if index >= first:
            found += pack(layer, control, headroom)
        outer.layers.append(layer)
    outer.arch = arch
    outer.to(device).requires_grad_(False)
    for one in found:
        one.anchor.requires_grad_(True)
    if head:
        found.append(pack_head(outer, control, headroom))
    return outer.eval(), found


def _by_layer(folder, device, dtype: torch.dtype) -> tuple[Decoder, Iterator[nn.Module]]:
    """The decoder without its layers, and these one by one."""
    contents = read_contents(folder)
    if contents.tensors:
        decoder = load_decoder(folder, "cpu", dtype)
        layers, decoder.layers = decoder.layers, nn.ModuleList()
        return decoder, iter(layers)
    seed = contents.kind.get("seed", int, 0, low=0)
    one = replace(contents.arch, num_layers=1, sliding_layers=())
    outer = random_decoder(one, seed, device, dtype)
    outer.layers = nn.ModuleList()

    def drawn() -> Iterator[nn.Module]:
        small = replace(one, vocab_size=1)  # a layer alone
        for index in range(contents.arch.num_layers):
            yield random_decoder(small, seed + 1 + index, device, dtype).layers[0]

    return outer, drawn()


def checkpoint_layers(decoder: Decoder) -> None:
    """Layers keep their input alone and run again for the gradient. Refuses a KV cache: it would
    be written to twice."""
    for layer in decoder.layers:
        layer.forward = partial(_again, layer.forward)


def _again(forward, x: Tensor, rotary, index: int, cache, tap, last: int) -> Tensor:
    if cache is not None:
        raise BadTraining(
            "checkpointing and a KV cache do not go together: a layer that runs again would store "
            "its tokens twice.\nGenerate with a decoder of its own, or without checkpointing."
        )
    if not torch.is_grad_enabled():
        return forward(x, rotary, index, None, tap, last)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(forward, x, rotary, index, None, tap, last, **options)
