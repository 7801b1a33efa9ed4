"""This engine as two pipeline stages, each a process of its own.

Arguments: `split_fraction` (of the layers in the first stage, half), `chunks` (pieces in which a
prompt is prefilled, so that the stages overlap). On a CPU the stages share the threads. Several
sequences run as two micro-batches; each candidate has its prompt run for itself.
"""


def imports(setup):
    """Import the engine; two stages that cannot run here count as not installed."""
    from ember.pipeline.pipeline import why_no_stages

    if reason := why_no_stages(setup.get("device", "cpu")):
        raise ImportError(reason)


def load(setup):
    import atexit

    import torch

    from ember.backends.sampling import SamplingParams
    from ember.model.folder import read_architecture
    from ember.pipeline.pipeline import Pipeline
    from ember.pipeline.plan import splits_of
    from ember.records.provenance import ember_version

    given = setup["arguments"]
    layers = read_architecture(setup["model"]).num_layers
    [split] = splits_of(layers, [given.get("split_fraction", 0.5)])
    pipeline = Pipeline(
        setup["model"],
        splits=[split],
        capacity=setup["capacity"],
        device=setup["device"],
        dtype=setup["dtype"],
        threads=max(1, setup["threads"] // 2),
    )
    pipeline.__enter__()
    atexit.register(pipeline.close)

    def generate(prompts, candidates, new_tokens, temperature):
        sequences = [prompt for prompt in prompts for _ in range(candidates)]
        run = pipeline.generate(
            sequences,
            SamplingParams(temperature=temperature, max_tokens=new_tokens, ignore_eos=True),
            split=split,
            micro_batches=min(2, len(sequences)),
            chunks=given.get("chunks", 1),
        )
        rows = iter(run.tokens)
        return [[list(next(rows)) for _ in range(candidates)] for _ in prompts]

    return generate, {
        "versions": {"ember": ember_version(), "torch": torch.__version__},
        "attention": "own",
        "kv_cache": f"static, {split}+{layers - split} layers",
        "prompt_kv": "of each candidate",
    }
