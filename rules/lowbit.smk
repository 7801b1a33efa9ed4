# Low-bit: what the rules of packed weights share.


def lowbit_model():
    """The measured model, and a tokenizer: its own, or the workflow's for random weights."""
    name = conf("lowbit", "model")
    own = conf("models", name, "source") != "random"
    return {
        "model": model_dir(name),
        "tokenizer": model_dir(name) if own else inter("tokenizer"),
    }
