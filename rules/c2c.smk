# C2C: what the rules of pairs and channels share.
from ember.c2c import points as channel


def c2c_pair(seed="{seed}", fuser="own"):
    """Inputs of whatever runs a trained pair: both models, the fuser, and the questions."""
    return {
        "sharer": inter(f"c2c/models/{seed}/sharer"),
        "receiver": inter(f"c2c/models/{seed}/receiver"),
        "fuser": inter(f"c2c/fuser/{seed}/{fuser}"),
        "questions": inter(f"c2c/models/{seed}/questions.parquet"),
    }


def c2c_fuser(kind):
    """Settings of a fuser's training; a control has steps of its own."""
    fuser = conf("c2c", "fuser")
    if kind == "own":
        return fuser
    return fuser | {
        "training": fuser["training"] | {"steps": conf("c2c", "self_steps")}
    }


def c2c_seeds(path):
    """An intermediate of every seed, `{seed}` in its path."""
    return expand(inter(path), seed=conf("c2c", "seeds"))


def c2c_state(w, name):
    """Where a training keeps its state; the job removes it with its last table."""
    return inter(f"states/c2c_{name}_{w.seed}.pt")


def channel_points(family):
    """Points of a study of the channel."""
    return getattr(channel, family)(conf("c2c", family))


def channel_job(name):
    """Parameters that measurements of the channel share; `name` is that of the rule."""
    return {
        "batch_size": conf("c2c", "points", "batch_size"),
        "limit": conf("c2c", "points", "limit"),
        "world_seed": lambda w: int(w.seed),
        "shards": lambda w: inter(f"states/c2c_{name}_{w.seed}"),
    }


def channel_judged():
    """What summaries of the channel share."""
    return {
        "judged": conf_of(
            ["c2c", "points"], "strata", "margin", "max_drift", "difficulty"
        ),
        "resamples": conf("c2c", "resamples"),
        "seed": conf("seed"),
    }


def channel_runs():
    """Every study's points on the test split."""
    families = ("ptq", "length", "layers", "selection")
    return [
        path
        for name in families
        for path in c2c_seeds(f"c2c/{name}/runs/{{seed}}.parquet")
    ]


def channel_oracles():
    """Selectors that need the receiver's own KV."""
    return list(channel.ORACLES)


def scaled_points():
    """Points whose scales are tabulated."""
    return channel.with_stats(conf("c2c", "ptq"))


def compared_selectors():
    """Selectors of the configured grids, and back."""
    return list(
        dict.fromkeys(
            one["mode"] for one in channel_points("selection") if one["mode"] != "all"
        )
    )


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


def c2c_real(*keys):
    """A value of the real pairs' section, which only some scales have."""
    return conf("c2c", "real", *keys)


def c2c_names(kind):
    """Names of real pairs or benchmarks, as a wildcard constraint."""
    named = c2c_real()[kind] if c2c_real() else {}
    return "|".join(name.replace(".", r"\.") for name in named) or "(?!)"


def c2c_protocol():
    """What all methods of real pairs share."""
    names = ("new_tokens", "message_tokens", "batch_size", "template", "grids")
    return conf_of(["c2c", "real"], *names) if c2c_real() else None


def c2c_real_inputs(w):
    """Models of a real pair, and its fuser if it has one."""
    pair = c2c_real("pairs", w.pair)
    models = {role: inter(f"models/{pair[role]}") for role in ("sharer", "receiver")}
    if pair["fuser"] is None:
        return models
    return models | {"fuser": inter(f"c2c/real/fusers/{w.pair}")}


def c2c_real_tables(kind):
    """Tables of every real pair on every benchmark; none where the scale has no pairs."""
    if c2c_real() is None:
        return []
    pairs, benchmarks = c2c_real("pairs"), c2c_real("benchmarks")
    path = inter(f"c2c/real/{kind}/{{pair}}.{{benchmark}}.parquet")
    return expand(path, pair=pairs, benchmark=benchmarks)


def c2c_copy(settings):
    """Hash of the local files that a fuser or benchmark is read from; None if it is the hub's."""
    place = Path(settings["source"]).expanduser()
    if place.is_dir():
        return sources.content_sha256(
            {"source": "local", "path": place / settings["folder"]}
        )
    return sources.content_sha256({"source": "hub", "hub_id": place})
