"""llama.cpp through llama-cpp-python: the project's GGUF, decoded by the C interface.

The loop is the C library's: batch, decode, sampler; Python only passes tokens on. Prompts run one
after another; a prompt's candidates share its KV and decode together. Prompts run on all threads,
single tokens on as many as a trial finds fastest, as Ember's do. Arguments: `n_gpu_layers` (all on
an accelerator), `n_ubatch`, `decode_threads` (in place of the trial), `use_extra_bufts` (false: it
does not repack weights for the processor).
"""

import time

KV = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml's numbers of its types
TRIAL_STEPS = 12
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 32: "BF16"}


def imports(setup):
    import llama_cpp  # noqa: F401


def load(setup):
    import ctypes

    import llama_cpp as c

    if setup.get("gguf") is None:
        raise ValueError("no GGUF file of the model was given")
    on_gpu = setup["device"].startswith("cuda")
    if on_gpu and not c.llama_supports_gpu_offload():
        raise ImportError("this llama-cpp-python is built without CUDA: rebuild with GGML_CUDA=on")

    def only_warnings(level, text, user_data):
        if level in (3, 4):
            import sys

            print(text.decode("utf-8", "replace"), end="", file=sys.stderr)

    log = c.llama_log_callback(only_warnings)
    c.llama_log_set(log, ctypes.c_void_p(0))
    c.llama_backend_init()
    wanted = c.llama_model_default_params()
    wanted.n_gpu_layers = setup["arguments"].get("n_gpu_layers", 999 if on_gpu else 0)
    repacked = wanted.use_extra_bufts = setup["arguments"].get("use_extra_bufts", True)
    model = c.llama_model_load_from_file(setup["gguf"].encode(), wanted)
    if not model:
        raise RuntimeError("llama.cpp cannot load " + setup["gguf"])
    params = c.llama_context_default_params()
    most = setup["candidates"]
    params.n_ctx = setup["capacity"] * most  # its candidates share a prompt: less would do
    params.n_batch = max(setup["capacity"], most)
    params.n_seq_max, params.kv_unified = most, True
    params.n_ubatch = setup["arguments"].get("n_ubatch", 512)
    params.n_threads = params.n_threads_batch = setup["threads"]
    params.type_k = params.type_v = KV[setup["dtype"]]
    context = c.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {setup['capacity']} tokens")
    memory, batch = c.llama_get_memory(context), c.llama_batch_init(most, 0, 1)
    greedy, drawn = c.llama_sampler_init_greedy(), c.llama_sampler_init_dist(setup["seed"])

    def decode(batch):
        status = c.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        c.llama_synchronize(context)

    def run(ids):
        array = (c.llama_token * len(ids))(*ids)
        decode(c.llama_batch_get_one(array, len(ids)))

    def generate(prompts, candidates, new_tokens, temperature):
        sampler = drawn if temperature else greedy
        return [_candidates(prompt, candidates, new_tokens, sampler) for prompt in prompts]

    def _candidates(prompt, candidates, new_tokens, sampler):
        c.llama_memory_clear(memory, True)
        run(prompt)
        for row in range(1, candidates):
            c.llama_memory_seq_cp(memory, 0, row, -1, -1)
        rows = [[c.llama_sampler_sample(sampler, context, -1)] for _ in range(candidates)]
        batch.n_tokens = candidates
        for step in range(1, new_tokens):
            for row, tokens in enumerate(rows):
                batch.token[row] = tokens[-1]
                batch.pos[row] = len(prompt) + step - 1
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, row
                batch.logits[row] = True
            decode(batch)
            for row, tokens in enumerate(rows):
                tokens.append(c.llama_sampler_sample(sampler, context, row))
        return rows

    def step_s(threads):
        """Seconds of the fastest of some single-token steps on so many threads."""
        c.llama_set_n_threads(context, threads, setup["threads"])
        c.llama_memory_clear(memory, True)
        times = []
        for _ in range(min(TRIAL_STEPS, setup["capacity"])):
            began = time.perf_counter()
            run([0])
            times.append(time.perf_counter() - began)
        return min(times)

    threads = setup["arguments"].get("decode_threads")
    if threads is None:
        threads = min(range(1, setup["threads"] + 1), key=step_s) if not on_gpu else 1
    c.llama_set_n_threads(context, threads, setup["threads"])

    kind = ctypes.create_string_buffer(64)
    c.llama_model_meta_val_str(model, b"general.file_type", kind, 64)
    generate.kept = (log, model, context, greedy, drawn)  # alive as long as the function is
    return generate, {
        "versions": {"llama-cpp-python": c.__version__},
        "decode_threads": threads,
        "attention": "llama.cpp's choice",
        "kv_cache": "static",
        "prompt_kv": "shared by its candidates",
        "weights_format": "GGUF "
        + FILE_TYPES.get(int(kind.value or -1), "of another type")
        + ("" if repacked else ", not repacked"),
    }
