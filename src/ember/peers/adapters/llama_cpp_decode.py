"""llama.cpp through llama-cpp-python: the project's GGUF, decoded by the C interface.

The loop is the C library's: batch, decode, greedy sampler; Python only passes tokens on. Prompts
run on all threads, single tokens on as many as a trial finds fastest, as Ember's do. Arguments:
`n_gpu_layers` (all on an accelerator), `n_ubatch`, `decode_threads` (in place of the trial).
"""

import time

KV = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml's numbers of its types
TRIAL_STEPS = 12
FILE_TYPES = {0: "F32", 1: "F16", 32: "BF16"}


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
    model = c.llama_model_load_from_file(setup["gguf"].encode(), wanted)
    if not model:
        raise RuntimeError("llama.cpp cannot load " + setup["gguf"])
    params = c.llama_context_default_params()
    params.n_ctx = setup["capacity"]
    params.n_batch = setup["capacity"]
    params.n_ubatch = setup["arguments"].get("n_ubatch", 512)
    params.n_threads = params.n_threads_batch = setup["threads"]
    params.type_k = params.type_v = KV[setup["dtype"]]
    context = c.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {setup['capacity']} tokens")
    greedy = c.llama_sampler_init_greedy()
    memory = c.llama_get_memory(context)

    def run(ids):
        array = (c.llama_token * len(ids))(*ids)
        status = c.llama_decode(context, c.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        c.llama_synchronize(context)

    def generate(prompt, new_tokens):
        c.llama_memory_clear(memory, True)
        tokens = []
        began = time.perf_counter()
        run(prompt)
        first = time.perf_counter()
        while True:
            tokens.append(c.llama_sampler_sample(greedy, context, -1))
            if len(tokens) == new_tokens:
                break
            run(tokens[-1:])
        ended = time.perf_counter()
        return first - began, ended - began, tokens

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
    generate.kept = (log, model, context, greedy)  # alive as long as the function is
    return generate, {
        "versions": {"llama-cpp-python": c.__version__},
        "decode_threads": threads,
        "kv_cache": "static",
        "weights_format": "GGUF " + FILE_TYPES.get(int(kind.value or -1), "of another type"),
    }
