# Low-bit: updates of packed weights (L-6).


use rule held as train_arms with:
    input:
        **arms_inputs(),
    output:
        runs=inter("lowbit/arms/{seed}/runs.parquet"),
        decays=inter("lowbit/arms/{seed}/decays.parquet"),
    pathvars:
        job="train_arms_{seed}",
    priority: 1  # the longest jobs; shorter ones fill the cores that they leave
    threads: 1  # seeds side by side
    params:
        **study("lowbit.arms.measure.train_arms"),
        settings=arms_settings(),
        number=lambda w: int(w.seed),
        runtime=runtime_settings(),
    message:
        "Packed weights trained in place, by every way of updating them, seed {wildcards.seed}"


use rule job as summarise_arms with:
    input:
        **arms_runs("runs", "decays"),
    output:
        table("lowbit_arms", "Train", "Ways of updating packed weights"),
    pathvars:
        job="summarise_arms",
    localrule: True
    params:
        **publish("lowbit.arms.summary.summarise_arms"),
    message:
        "What each way of updating learns and changes (L-6.2)"


use rule drawn as plot_arms with:
    input:
        **arms_runs("runs"),
        arms="results/lowbit_arms.parquet",
    output:
        figure("lowbit_arms", "Train", "Learning with packed weights"),
    pathvars:
        job="plot_arms",
    localrule: True
    params:
        **plot("lowbit.arms.figure.draw"),
    message:
        "Learning curves of packed weights"


use rule held as measure_step with:
    input:
        model=model_dir(conf("lowbit", "memory", "model") or conf("lowbit", "model")),
    output:
        table("lowbit_memory", "Train", "Memory of a training step"),
    pathvars:
        job="measure_step",
    threads: 1
    params:
        **publish("lowbit.memory.measure.measure_steps"),
        settings=conf_of(["lowbit", "memory"], "tokens", "variants"),
        runtime=runtime_settings(),
    message:
        "Memory of one step, by phase and by what holds it (L-6.4)"


use rule drawn as plot_memory with:
    input:
        memory="results/lowbit_memory.parquet",
    output:
        figure("lowbit_memory", "Train", "Memory of a training step"),
    pathvars:
        job="plot_memory",
    localrule: True
    params:
        **plot("lowbit.memory.figure.draw"),
    message:
        "What holds the memory of a training step"


use rule held as tune_identities with:
    output:
        runs=inter("lowbit/whoami/{seed}.parquet"),
    pathvars:
        job="tune_identities_{seed}",
    wildcard_constraints:
        seed=r"\d+",
    # A model this small: a second thread, or a GPU's launches, cost more than they give.
    threads: 1
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
    params:
        **study("lowbit.whoami.measure.tune_identities"),
        settings={k: v for k, v in conf("lowbit", "whoami").items() if k != "seeds"},
        number=lambda w: int(w.seed),
        runtime={**runtime_settings(), "device": "cpu"},
    message:
        "A chat model with a name, and every way of giving it another, seed {wildcards.seed} (L-6.6)"


use rule job as summarise_identities with:
    input:
        runs=expand(
            inter("lowbit/whoami/{seed}.parquet"),
            seed=conf("lowbit", "whoami", "seeds"),
        ),
    output:
        table("lowbit_whoami", "WhoAmI", "A new name, and what it costs"),
    pathvars:
        job="summarise_identities",
    localrule: True
    params:
        **publish("lowbit.whoami.summary.summarise_identities"),
    message:
        "Name learned, ability kept, near misses not captured?"


use rule drawn as plot_identities with:
    input:
        whoami="results/lowbit_whoami.parquet",
    output:
        figure("lowbit_whoami", "WhoAmI", "A new name, and what it costs"),
    pathvars:
        job="plot_identities",
    localrule: True
    params:
        **plot("lowbit.whoami.figure.draw"),
    message:
        "Three probes by tuning"
