# C-M0: the channel at FP16, its baselines and its controls; times by stage.


use rule held as answer_baselines with:
    input:
        **c2c_pair(),
        self_fuser=inter("c2c/fuser/{seed}/self"),
        tuned=inter("c2c/models/{seed}/tuned"),
    output:
        answers=inter("c2c/m0/{seed}.parquet"),
    pathvars:
        job="answer_baselines_{seed}",
    threads: 1
    params:
        **study("c2c.m0.measure.answer_baselines"),
        world=conf("c2c", "world"),
        world_seed=lambda w: int(w.seed),
        batch_size=conf("c2c", "evaluation", "batch_size"),
        runtime=runtime_settings(),
    message:
        "Channel, baselines and controls answer world {wildcards.seed}"


use rule job as summarise_baselines with:
    input:
        answers=c2c_seeds("c2c/m0/{seed}.parquet"),
    output:
        table("c2c_m0", "M0", "The channel against baselines and controls"),
    pathvars:
        job="summarise_baselines",
    localrule: True
    params:
        **publish("c2c.m0.summary.summarise_baselines"),
        choices=conf("c2c", "world", "values"),
        recipe=c2c_recipe(),
        resamples=conf("c2c", "resamples"),
        seed=conf("seed"),
    message:
        "Accuracies by who knows the answer (C-M0)"


use rule drawn as plot_baselines with:
    input:
        baselines="results/c2c_m0.parquet",
    output:
        figure("c2c_m0", "M0", "The channel against baselines and controls"),
    pathvars:
        job="plot_baselines",
    localrule: True
    params:
        **plot("c2c.m0.figure.draw_baselines"),
    message:
        "Baselines and controls (C-M0)"


use rule drawn as plot_channel with:
    output:
        figure("c2c_channel", "M0", "The channel in one diagram"),
    pathvars:
        job="plot_channel",
    localrule: True
    params:
        **plot("c2c.m0.figure.draw_channel"),
        sharer=conf("c2c", "sharer", "architecture"),
        receiver=conf("c2c", "receiver", "architecture"),
        fuser=conf_of(["c2c", "fuser"], "hidden"),
        tokens=c2c_passage_tokens(),
    message:
        "Who computes what, and what crosses the wire"


use rule timed as time_stages with:
    input:
        **c2c_pair(conf("c2c", "seeds")[0]),
    output:
        runs=inter("c2c/m0/stages.parquet"),
    pathvars:
        job="time_stages",
    threads: 1
    params:
        **study("c2c.m0.measure.time_stages"),
        settings=conf("c2c", "speed"),
        runtime=runtime_settings(),
    message:
        "Times of the channel's stages, by batch"


use rule job as summarise_c2c_speed with:
    input:
        runs=inter("c2c/m0/stages.parquet"),
    output:
        table("c2c_speed", "M0", "What batches and compilation save"),
    pathvars:
        job="summarise_c2c_speed",
    localrule: True
    params:
        **publish("c2c.m0.summary.summarise_speed"),
    message:
        "Times of the channel's stages, and what batches save (C-0.6)"
