# Low-bit: what the rules of packed weights share.


def lowbit_model():
    """The measured model, and a tokenizer: its own, or the workflow's for random weights."""
    name = conf("lowbit", "model")
    own = conf("models", name, "source") != "random"
    return {
        "model": model_dir(name),
        "tokenizer": model_dir(name) if own else inter("tokenizer"),
    }


def arms_inputs():
    """The model that the arms go on training, and what it learns."""
    name = conf("lowbit", "arms", "model") or conf("lowbit", "model")
    return {
        "model": model_dir(name),
        "corpus": inter(f"corpora/{conf('lowbit', 'arms', 'corpus')}.parquet"),
    }


def arms_settings():
    """The settings of the arms but for what is an input."""
    return {
        k: v
        for k, v in conf("lowbit", "arms").items()
        if k not in ("model", "corpus", "seeds")
    }


def arms_runs(*names):
    """Tables of the arms, of all seeds."""
    seeds = conf("lowbit", "arms", "seeds")
    return {
        name: [inter(f"lowbit/arms/{seed}/{name}.parquet") for seed in seeds]
        for name in names
    }
