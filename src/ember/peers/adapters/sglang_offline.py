"""SGLang's offline engine, streamed so that the first token can be stamped.

Arguments go to `sglang.Engine` (`mem_fraction_static`, `tp_size`, `attention_backend`, …). Its
radix cache is off: every repeat pays for its prompt. A model directory without weights runs with
SGLang's own dummy weights.
"""

import time


def imports(setup):
    import sglang  # noqa: F401


def load(setup):
    import sglang

    given = {
        "disable_radix_cache": True,
        "mem_fraction_static": 0.4,  # other engines of the comparison share the device
        **setup["arguments"],
    }
    engine = sglang.Engine(
        model_path=setup["model"],
        dtype=setup["dtype"],
        random_seed=setup["seed"],
        context_length=setup["capacity"] + 1,
        skip_tokenizer_init=True,
        load_format="auto" if setup["weights"] == "files" else "dummy",
        **given,
    )

    def generate(prompt, new_tokens):
        sampling = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
        tokens, first = [], None
        began = time.perf_counter()
        for part in engine.generate(input_ids=prompt, sampling_params=sampling, stream=True):
            if first is None:
                first = time.perf_counter()
            # Some versions stream all tokens so far, others only the new ones.
            new, so_far = list(part["output_ids"]), part["meta_info"]["completion_tokens"]
            tokens = new if len(new) == so_far else tokens + new
        return first - began, time.perf_counter() - began, tokens

    return generate, {
        "versions": {"sglang": sglang.__version__},
        "kv_cache": "paged",
        "kv_dtype": given.get("kv_cache_dtype", setup["dtype"]),
        "ttft_until": "token",
    }
