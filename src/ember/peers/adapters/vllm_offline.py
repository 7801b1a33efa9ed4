"""vLLM's offline engine, stepped so that the first token can be stamped.

Arguments go to `vllm.LLM` (`gpu_memory_utilization`, `tensor_parallel_size`, `enforce_eager`, …).
Prefix caching is off: every repeat pays for its prompt. A model directory without weights runs with
vLLM's own dummy weights.
"""

import time


def imports(setup):
    import vllm  # noqa: F401


def load(setup):
    import vllm
    from vllm import LLM, SamplingParams

    given = {
        "enable_prefix_caching": False,
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
    ).llm_engine
    names = iter(range(1 << 62))

    def generate(prompt, new_tokens):
        sampling = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        tokens, first = [], None
        began = time.perf_counter()
        engine.add_request(str(next(names)), {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens = list(output.outputs[0].token_ids)
                if first is None and tokens:
                    first = time.perf_counter()
        return first - began, time.perf_counter() - began, tokens

    return generate, {
        "versions": {"vllm": vllm.__version__},
        "kv_cache": "paged",
        "kv_dtype": given.get("kv_cache_dtype", setup["dtype"]),
        "ttft_until": "token",
    }
