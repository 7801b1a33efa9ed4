# P1: KV-cache policies for RL rollouts. What its rules share.


def model_dir(name=None):
    """Directory of a model, by default of the one that P1 measures."""
    return inter(f"models/{name or SETTINGS['p1']['model']}")


def gated_model():
    """Inputs of a rule that runs the measured model, once the gates hold."""
    return {"gates": inter("p1/gates.parquet"), "model": model_dir()}


def gated_prompts():
    """Inputs of a rule that runs the measured model on prompts, once the gates hold."""
    return gated_model() | {"workload": inter("p1/workload.parquet")}


def workload_inputs(wildcards):
    """A model with real weights reads real text; random weights read random tokens."""
    if SETTINGS["models"][SETTINGS["p1"]["model"]]["source"] == "random":
        return {"model": model_dir()}
    corpus = inter(f"corpora/{SETTINGS['p1']['corpus']}.parquet")
    return {"model": model_dir(), "corpus": corpus}


def longest_prompt():
    """Tokens a prompt of the workload must have for every rule that cuts one from it."""
    p1 = SETTINGS["p1"]
    return max(
        *p1["profile"]["contexts"],
        *p1["prefix"]["prompts"],
        *cost_contexts(),
        p1["speed"]["prompt_tokens"],
        p1["pipeline"]["context"],
        p1["loading"]["prompt_tokens"],
        *(point["prompt_tokens"] for point in p1["frameworks"]["points"]),
        *(point["context"] for point in p1["rollout"]["points"]),
        *(point["context"] for point in p1["learner"]["points"]),
        p1["consistency"]["prompt_tokens"],
    )


def cost_contexts():
    """Prompt lengths of the cumulative cost."""
    return sorted({point["context"] for point in SETTINGS["p1"]["rounds"]["points"]})


def peer_environments(peers):
    """Peers whose own Python is there: the comparison runs again when one is installed."""
    own = {name: peer["python"] for name, peer in peers.items() if peer["python"]}
    return [name for name, python in own.items() if (ROOT / python).is_file()]


def pipeline_settings(*own):
    """The settings of `p1.pipeline` that describe a run, and a job's own ones."""
    shape = ("context", "generation", "sequences", "micro_batches", "chunks", "timeout")
    return conf_of(["p1", "pipeline"], *shape, *own)


def staged_profile_settings():
    """The profile's points, and how two stages run them."""
    settings = SETTINGS["p1"]["pipeline"]
    return conf_of(["p1", "profile"], "contexts", "generations", "warmup") | {
        "repeats": settings["rollout_repeats"],
        "split_fraction": settings["rollout_split"],
        "chunks": settings["rollout_chunks"],
        "timeout": settings["timeout"],
    }
