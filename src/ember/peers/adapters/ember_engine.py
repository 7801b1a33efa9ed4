"""This engine, through the same protocol as its peers."""

import time


def imports(setup):
    import torch

    import ember.engine.engine  # noqa: F401

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.measure.clock import PhaseClock
    from ember.measure.device import synchronize
    from ember.model.checkpoint import load_decoder
    from ember.records.provenance import ember_version

    device = setup["device"]
    decoder = load_decoder(setup["model"], device, getattr(torch, setup["dtype"]))
    engine = Engine(decoder, capacity=setup["capacity"])

    def generate(prompt, new_tokens):
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        clock = PhaseClock(device)
        synchronize(device)
        began = time.perf_counter()
        [[completion]] = engine.generate([prompt], sampling, clock=clock)
        synchronize(device)
        total_s = time.perf_counter() - began
        ttft_s = clock.times_ms()["prefill"] / 1e3
        return ttft_s, total_s, list(completion.tokens), {"decode_threads": engine.backend.threads}

    return generate, {
        "versions": {"ember": ember_version(), "torch": torch.__version__},
        "kv_cache": "static",
    }
