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


def c2c_recipe():
    """What deviates from the published recipe, for the tables' rows."""
    fuser = conf("c2c", "fuser")
    return (
        "generated world, curriculum and smear for the models, "
        f"outliers x {conf('c2c', 'sharer', 'outliers'):g}, fuser: keys "
        f"{'after' if fuser['rotated'] else 'before'} rotation, {fuser['noise']} noise, warm start"
    )


def c2c_passage_tokens():
    """Tokens of a passage."""
    world = conf("c2c", "world")
    return 1 + 3 * world["records"] + world["fillers"]
