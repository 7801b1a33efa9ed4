"""Hugging Face Transformers' `generate`: dynamic cache, or static cache with compiled steps.

Arguments: `cache` (dynamic or static), `compile` (of the static cache's steps). A model directory
without weights is instantiated from its config, with weights drawn on the device. Prompts of the
same length are one batch, and `num_return_sequences` runs each as often as it has candidates.
"""


def imports(setup):
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    device, dtype = setup["device"], getattr(torch, setup["dtype"])
    static = setup["arguments"].get("cache", "dynamic") == "static"
    compiled = static and setup["arguments"].get("compile", True)
    torch.manual_seed(setup["seed"])
    if setup["weights"] == "files":
        model = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=dtype).to(device)
    else:
        config = AutoConfig.from_pretrained(setup["model"])
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval()
    model.generation_config.eos_token_id = None  # to the full length, whatever is generated
    more = {}
    if static:
        more["cache_implementation"] = "static"
        if compiled:
            from transformers import CompileConfig

            # CUDA graphs are what makes it fast on GPUs; on a CPU the mode has nothing to record.
            mode = "reduce-overhead" if device.startswith("cuda") else "default"
            more["compile_config"] = CompileConfig(mode=mode)
            if device == "cpu":  # generate compiles by itself on accelerators only
                more["compile_config"]._compile_all_devices = True
        else:
            more["disable_compile"] = True

    def generate(prompts, candidates, new_tokens, temperature):
        tokens = torch.tensor(prompts, device=device)
        sampling = {"do_sample": False}
        if temperature:  # of all tokens: `generate` cuts to the best 50 unless told otherwise
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                num_return_sequences=candidates,
                pad_token_id=0,
                **sampling,
                **more,
            )
        rows = iter(out[:, tokens.shape[1] :].tolist())
        return [[next(rows) for _ in range(candidates)] for _ in prompts]

    return generate, {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "attention": model.config._attn_implementation,
        "kv_cache": "static, compiled steps" if compiled else "static" if static else "dynamic",
        "prompt_kv": "of each candidate",
    }
