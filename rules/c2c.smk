# C2C: what the rules of pairs and channels share.


def c2c_pair(seed="{seed}", fuser="own"):
    """Inputs of whatever runs a trained pair: both models, the fuser, and the questions."""
    return {
        "sharer": inter(f"c2c/models/{seed}/sharer"),
        "receiver": inter(f"c2c/models/{seed}/receiver"),
        "fuser": inter(f"c2c/fuser/{seed}/{fuser}"),
        "questions": inter(f"c2c/models/{seed}/questions.parquet"),
    }


def c2c_seeds(path):
    """An intermediate of every seed, `{seed}` in its path."""
    return expand(inter(path), seed=conf("c2c", "seeds"))


def c2c_state(w, name):
    """Where a training keeps its state; the job removes it with its last table."""
    return inter(f"states/c2c_{name}_{w.seed}.pt")
