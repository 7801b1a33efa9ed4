"""Hugging Face Transformers' `generate`: dynamic cache, or static cache with compiled steps.

Arguments: `cache` (dynamic or static), `compile` (of the static cache's steps). A model directory
without weights is instantiated from its config, with weights drawn on the device.
"""

import time


def imports(setup):
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

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

    def synchronize():
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    class FirstLogits(LogitsProcessor):
        at = None

        def __call__(self, input_ids, scores):
            if self.at is None:
                synchronize()
                self.at = time.perf_counter()
            return scores

    def generate(prompt, new_tokens):
        tokens = torch.tensor([prompt], device=device)
        stamp = FirstLogits()
        synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=new_tokens,
                logits_processor=LogitsProcessorList([stamp]),
                pad_token_id=0,
                **more,
            )
        synchronize()
        ended = time.perf_counter()
        return stamp.at - began, ended - began, out[0, len(prompt) :].tolist()

    return generate, {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "kv_cache": "static, compiled steps" if compiled else "static" if static else "dynamic",
    }
