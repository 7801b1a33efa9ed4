"""This engine, through the same protocol as its peers, with its prefix cache.

Arguments: `rows` (the most candidates that decode together).
"""

import itertools


def imports(setup):
    import torch

    import ember.engine.engine  # noqa: F401

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PrefixPrefill
    from ember.model.checkpoint import load_decoder
    from ember.records.provenance import ember_version

    dtype, capacity = getattr(torch, setup["dtype"]), setup["capacity"]
    decoder = load_decoder(setup["model"], setup["device"], dtype)
    kept = RadixCache(2 * capacity * decoder.arch.kv_bytes_per_token(dtype.itemsize))
    rows = setup["arguments"].get("rows")
    engine = Engine(decoder, capacity=capacity, prefill=PrefixPrefill(kept), max_rows=rows)
    seeds = itertools.count(setup["seed"])
    about = {
        "versions": {"ember": ember_version(), "torch": torch.__version__},
        "attention": "own, " + engine.select(1).name,
        "kv_cache": "static",
        "prompt_kv": "prefix cache",
    }

    def generate(prompts, candidates, new_tokens, temperature):
        sampling = SamplingParams(
            temperature=temperature, max_tokens=new_tokens, seed=next(seeds), ignore_eos=True
        )
        completions = engine.generate(prompts, sampling, candidates)
        about["decode_threads"] = engine.backend.threads
        return [[list(one.tokens) for one in found] for found in completions]

    return generate, about
