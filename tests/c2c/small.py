"""Small pairs, worlds and items for the tests of C2C."""

import torch

from ember.c2c.evaluate import Item
from ember.c2c.fuser import Fuser, FuserShape, layer_map
from ember.c2c.pair import Pair, Reader, Smear
from ember.c2c.world import World
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder

WORLD = World(
    records=4, fillers=3, entities=4, entities_at_once=2, relations=4, values=6, filler_kinds=2
)
SHARER = {"model_type": "llama", "num_layers": 3, "num_heads": 2, "num_kv_heads": 1}
RECEIVER = {"model_type": "qwen3", "num_layers": 4, "num_heads": 4, "num_kv_heads": 2}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "head_dim": 8,
    "vocab_size": WORLD.vocab_size,
    "max_positions": 128,
}


def reader(fields: dict, seed: int, smear: bool = True) -> Reader:
    arch = Architecture.make(**SIZES | fields)
    decoder = random_decoder(arch, seed)
    with torch.no_grad():
        for p in decoder.parameters():
            if p.ndim == 2:
                p.mul_(8)  # answers of a freshly drawn model hardly depend on anything
    return Reader(decoder, Smear(arch.hidden_size) if smear else None).eval().requires_grad_(False)


def open_fuser(fuser: Fuser) -> Fuser:
    for layer in fuser:
        layer.key.gate.data.fill_(1.0)
        layer.value.gate.data.fill_(1.0)
    return fuser


def pair(*, opened: bool = True, smear: bool = True, **options) -> Pair:
    sharer, receiver = reader(SHARER, 1, smear), reader(RECEIVER, 2, smear)
    torch.manual_seed(3)
    fuser = Fuser(
        FuserShape.of(sharer.arch, receiver.arch, 12),
        layer_map("last", sharer.arch.num_layers, receiver.arch.num_layers),
        **options,
    ).requires_grad_(False)
    return Pair(sharer, receiver, open_fuser(fuser) if opened else fuser)


def ragged_items(count: int = 24) -> list[Item]:
    """Prompts of several lengths: a template, a text that is fused, words between, a fused hint,
    the last words."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(WORLD.vocab_size, (size,), generator=generator).tolist())

    items = []
    for number in range(count):
        sections = (drawn(1, 4), drawn(3, 12), drawn(1, 3), drawn(1, 4), drawn(1, 5))
        fused = (False, True, False, True, False)
        before = sum(map(len, sections[:-1]))
        sharer = drawn(before, before + 5)
        index = tuple(n if n % 5 else -1 for n in range(before))
        items.append(
            Item(
                *(number, number, "sharer_only", sharer, sections, fused, index),
                instruction=(True,) * before,
                choices=tuple(WORLD.choices()),
                right=WORLD.choices()[number % 6],
            )
        )
    return items
