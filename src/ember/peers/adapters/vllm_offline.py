"""vLLM's offline engine, as its users call it: `LLM.generate`.

Arguments go to `vllm.LLM` (`gpu_memory_utilization`, `tensor_parallel_size`, `enforce_eager`, …).
Its prefix cache is on. A model directory without weights runs with vLLM's own dummy weights.
"""


def imports(setup):
    import vllm  # noqa: F401


def load(setup):
    import vllm
    from vllm import LLM, SamplingParams

    given = {
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.4,  # other engines of the comparison share the device
        **setup["arguments"],
    }
    engine = LLM(
        model=setup["model"],
        dtype=setup["dtype"],
        seed=setup["seed"],
        max_model_len=setup["capacity"],
        skip_tokenizer_init=True,
        load_format="auto" if setup["weights"] == "files" else "dummy",
        **given,
    )

    def generate(prompts, candidates, new_tokens, temperature):
        # vLLM refuses several greedy candidates of one request.
        requests = 1 if temperature else candidates
        sampling = SamplingParams(
            n=candidates // requests,
            temperature=temperature,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(requests)]
        found = engine.generate(asked, sampling, use_tqdm=False)
        tokens = [list(one.token_ids) for request in found for one in request.outputs]
        return [tokens[n : n + candidates] for n in range(0, len(tokens), candidates)]

    return generate, {
        "versions": {"vllm": vllm.__version__},
        "attention": _attention(engine),
        "kv_cache": "paged",
        "kv_dtype": given.get("kv_cache_dtype", setup["dtype"]),
        "prompt_kv": "prefix cache" if given["enable_prefix_caching"] else "of each candidate",
    }


def _attention(engine):
    """Names of the attention backends in use; a model in another process does not show them."""
    layers = engine.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    names = {layer.attn_backend.get_name() for layer in layers if hasattr(layer, "attn_backend")}
    return ", ".join(sorted(names)) or "vLLM's choice"
