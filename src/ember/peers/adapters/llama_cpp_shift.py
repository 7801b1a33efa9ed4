"""llama.cpp's context shift through llama-cpp-python: lazy pruning, on the project's GGUF.

A full context keeps its first `n_sink` tokens (`--keep`), drops the `compression_interval` oldest
others (`n_discard`) and moves the rest down, its keys rotated anew. The shift is done by those who
use the library; these are the calls that llama-server makes. Single tokens are decoded on all
threads allowed. Arguments of a setup: `n_gpu_layers` (all on an accelerator). One stream a call.
"""

KV = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml's numbers of its types


def imports(setup):
    import llama_cpp  # noqa: F401


def load(setup):
    import ctypes

    import llama_cpp as c
    import numpy as np

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
    params.n_ctx = params.n_batch = setup["capacity"]
    params.n_threads = params.n_threads_batch = setup["threads"]
    params.type_k = params.type_v = KV[setup["dtype"]]
    context = c.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {setup['capacity']} tokens")
    memory, batch = c.llama_get_memory(context), c.llama_batch_init(setup["capacity"], 0, 1)
    if not c.llama_memory_can_shift(memory):
        raise RuntimeError("llama.cpp cannot shift the context of this model")
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def logits(tokens, past):
        """(n, vocabulary) of tokens that follow `past` others."""
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, past + row, True
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
        if status := c.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode gives {status}")
        return np.ctypeslib.as_array(c.llama_get_logits(context), (len(tokens), vocabulary))

    def stream(streams, prefill, peak, compression_interval, n_sink, **_):
        [tokens] = streams
        c.llama_memory_clear(memory, True)
        past = step = 0
        for count in [prefill] + [1] * (len(tokens) - prefill):
            if past + count > peak:
                end = n_sink + compression_interval
                c.llama_memory_seq_rm(memory, 0, n_sink, end)
                c.llama_memory_seq_add(memory, 0, end, past, -compression_interval)
                past -= compression_interval
            found = logits(tokens[step : step + count], past).astype(np.float64)
            past, step = past + count, step + count
            known = tokens[step - count + 1 : step + 1]
            found = found[: len(known)]
            top = found.max(-1, keepdims=True)
            total = np.log(np.exp(found - top).sum(-1)) + top[:, 0]
            yield past, [(total - found[np.arange(len(known)), known]).tolist()]

    stream.kept = (log, model, context)  # alive as long as the function is
    return stream, {
        "versions": {"llama-cpp-python": c.__version__},
        "attention": "llama.cpp's choice",
        "rows": 1,
    }
