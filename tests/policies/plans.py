"""Every kind of plan, carried out twice while the weights change: by one forward in memory of its
own, as the engine does it, and by the decoder in the prompt's own cache."""

import torch

from ember.backends.forward import Forward
from ember.cache.contiguous import ContiguousCache
from ember.policies.execute import PromptKV, run_plan
from ember.policies.plan import Plan
from tests.policies.tiny_lora import Lora

PREFIX = 5


def kinds(layers: int, tokens: int) -> dict[str, Plan]:
    """A plan of each kind, in an order in which each finds what it needs."""
    half = layers // 2
    return {
        "full": Plan.full(layers),
        "restart": Plan.restart(layers, half),
        "restart of some tokens": Plan(half, layers, tokens // 2),
        "first layers": Plan(0, layers - 1, 0),
        "last token above a restart": Plan(half, half, 0),
        "last tokens": Plan.last_tokens(layers, tokens, 3),
        "last token": Plan.last_tokens(layers, tokens),
        "head": Plan(layers, layers, 0),
        "shared prefix": Plan(0, layers, PREFIX, prefix_tokens=PREFIX),
        "full again": Plan.full(layers),
        "corrected": Plan.last_tokens(layers, tokens, correct=True),
        "refreshed": Plan.full(layers),
        "corrected again": Plan.last_tokens(layers, tokens, correct=True),
    }


@torch.inference_mode()
def compare(decoder, fast: Forward, tokens: int = 13, step: float = 0.2):
    """Yields the name of each plan, and the largest difference of logits, KV and what is kept."""
    layers, device = decoder.arch.num_layers, decoder.embed_tokens.weight.device
    keys = [(layer, name) for layer in range(1, layers) for name in ("k_proj", "v_proj")]
    lora = Lora(decoder, keys, seed=3)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(decoder.arch.vocab_size, (tokens,), generator=generator).tolist()
    other = ids[:PREFIX] + [(token + 1) % decoder.arch.vocab_size for token in ids[PREFIX:]]
    weight = decoder.embed_tokens.weight
    memory = ContiguousCache(decoder.arch, 1, tokens + 3, device, weight.dtype)
    slow = Forward(decoder)
    mine, theirs, donor = (PromptKV.empty(decoder, one) for one in (ids, ids, other))
    for name, plan in kinds(layers, tokens).items():
        adapter, more = copied(lora), {"boundaries": (layers // 2,)}
        if plan.prefix_tokens:
            run_plan(slow, donor, Plan.full(layers), adapter=adapter, **more)
            more["donor"] = donor
        for _ in range(2 if not plan.correct else 1):  # the second may be recorded, the third too
            found = run_plan(fast, mine, plan, into=memory, adapter=adapter, **more)
            expected = run_plan(slow, theirs, plan, adapter=adapter, **more)
        pairs = [
            (found, expected),
            (mine.top, theirs.top),
            (mine.cache.segment(0, 0, tokens), theirs.cache.segment(0, 0, tokens)),
            (memory.segment(0, 0, tokens), theirs.cache.segment(0, 0, tokens)),
            (mine.cache.factors[:, :, :tokens], theirs.cache.factors[:, :, :tokens]),
        ]
        if mine.cache.raw_keys is not None:
            pairs.append((mine.cache.raw_keys, theirs.cache.raw_keys))
        assert mine.hidden.keys() == theirs.hidden.keys() == {layers // 2}
        pairs += [(x, theirs.hidden[layer]) for layer, x in mine.hidden.items()]
        known = [made is not None for made in mine.cache.made_by]
        assert known == [made is not None for made in theirs.cache.made_by]
        assert mine.bytes == theirs.bytes
        yield name, max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        lora.step(step)


def copied(lora: Lora) -> dict:
    """The adapter as it is now, whatever the next step does."""
    return {
        key: type(part)(part.a, part.b.clone(), part.scale) for key, part in lora.adapter.items()
    }
