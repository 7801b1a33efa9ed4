"""SGLang's offline engine.

Arguments go to `sglang.Engine` (`mem_fraction_static`, `tp_size`, `attention_backend`, …). A model
directory without weights runs with SGLang's own dummy weights.
"""


def imports(setup):
    import sglang  # noqa: F401


def load(setup):
    import sglang

    # Other engines of the comparison share the device.
    given = {"mem_fraction_static": 0.4, **setup["arguments"]}
    engine = sglang.Engine(
        model_path=setup["model"],
        dtype=setup["dtype"],
        random_seed=setup["seed"],
        context_length=setup["capacity"] + 1,
        skip_tokenizer_init=True,
        load_format="auto" if setup["weights"] == "files" else "dummy",
        **given,
    )

    def generate(prompts, candidates, new_tokens, temperature):
        sampling = {"temperature": temperature, "max_new_tokens": new_tokens, "ignore_eos": True}
        # Candidates of a prompt follow each other in the answer.
        found = engine.generate(input_ids=prompts, sampling_params=sampling | {"n": candidates})
        rows = iter(found)
        return [[list(next(rows)["output_ids"]) for _ in range(candidates)] for _ in prompts]

    shares = not given.get("disable_radix_cache", False)
    return generate, {
        "versions": {"sglang": sglang.__version__},
        "attention": given.get("attention_backend", "SGLang's choice"),
        "kv_cache": "paged",
        "kv_dtype": given.get("kv_cache_dtype", setup["dtype"]),
        "prompt_kv": "prefix cache" if shares else "of each candidate",
    }
