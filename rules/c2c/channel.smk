# C2C: the quantised channel: schemes, length, budget, layers, selection (C-M1 to C-M4, C-M6, C-M8).
# Models this small answer on one thread each, side by side.


# One job holds the models of a seed and evaluates all points of a study.
use rule held as measure_channel with:
    input:
        **c2c_pair(),
    output:
        runs=inter("c2c/{family}/runs/{seed}.parquet"),
    pathvars:
        job="measure_channel_{family}_{seed}",
    wildcard_constraints:
        family="ptq|length|selection",
    threads: 1
    params:
        **study("c2c.points.measure_points"),
        points=lambda w: channel_points(w.family),
        family=lambda w: w.family,
        batch_size=conf("c2c", "points", "batch_size"),
        limit=conf("c2c", "points", "limit"),
        world_seed=lambda w: int(w.seed),
        shards=lambda w: inter(f"states/c2c_{w.family}_{w.seed}"),
        runtime=runtime_settings(),
    message:
        "Answers at every point of {wildcards.family}, world {wildcards.seed}"


use rule held as measure_scales with:
    input:
        **c2c_pair(),
    output:
        runs=inter("c2c/ptq/scales/{seed}.parquet"),
    pathvars:
        job="measure_scales_{seed}",
    threads: 1
    params:
        **study("c2c.ptq.measure.measure_scales"),
        points=scaled_points(),
        batch_size=conf("c2c", "points", "batch_size"),
        limit=conf("c2c", "points", "limit"),
        world_seed=lambda w: int(w.seed),
        runtime=runtime_settings(),
    message:
        "Scales that are sent, world {wildcards.seed} (C-M2)"


use rule held as plan_schedules with:
    input:
        **c2c_pair(),
    output:
        runs=inter("c2c/layers/sensitivity/{seed}.parquet"),
        schedules=inter("c2c/layers/schedules/{seed}.parquet"),
    pathvars:
        job="plan_schedules_{seed}",
    threads: 1
    params:
        **study("c2c.layers.measure.plan_schedules"),
        **channel_job("plan"),
        settings=conf("c2c", "layers"),
        stratum=conf("c2c", "points", "strata")[0],
        runtime=runtime_settings(),
    message:
        "What each layer bears, and schedules by budget, world {wildcards.seed} (C-M6)"


use rule held as measure_schedules with:
    input:
        **c2c_pair(),
        schedules=inter("c2c/layers/schedules/{seed}.parquet"),
    output:
        runs=inter("c2c/layers/runs/{seed}.parquet"),
    pathvars:
        job="measure_schedules_{seed}",
    threads: 1
    params:
        **study("c2c.layers.measure.measure_schedules"),
        **channel_job("layers"),
        settings=conf("c2c", "layers"),
        runtime=runtime_settings(),
    message:
        "Answers under every layer schedule, world {wildcards.seed} (C-M6)"


use rule held as measure_selectors with:
    input:
        **c2c_pair(),
    output:
        overlap=inter("c2c/selection/overlap/{seed}.parquet"),
        times=inter("c2c/selection/times/{seed}.parquet"),
    pathvars:
        job="measure_selectors_{seed}",
    threads: 1
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("c2c.selection.measure.measure_selectors"),
        modes=compared_selectors(),
        proportion=conf("c2c", "selection", "overlap"),
        settings=conf_of(["c2c", "selection"], "stages", "warmup", "repeats"),
        batch_size=conf("c2c", "points", "batch_size"),
        limit=conf("c2c", "points", "limit"),
        world_seed=lambda w: int(w.seed),
        runtime=runtime_settings(),
    message:
        "What selectors have in common, and the time of each stage, world {wildcards.seed} (C-M8)"


use rule larger as summarise_ptq with:
    input:
        runs=c2c_seeds("c2c/ptq/runs/{seed}.parquet"),
    output:
        table("c2c_m1", "M1", "Schemes on every axis"),
    pathvars:
        job="summarise_ptq",
    localrule: True
    params:
        **publish("c2c.ptq.summary.summarise_ptq"),
        **channel_judged(),
    message:
        "Quantised channels against the FP16 channel (C-M1)"


use rule larger as join_scales with:
    input:
        runs=c2c_seeds("c2c/ptq/scales/{seed}.parquet"),
    output:
        table("c2c_scales", "M2", "Scales that are sent, by layer"),
    pathvars:
        job="join_scales",
    localrule: True
    params:
        **publish("c2c.ptq.summary.join_scales"),
    message:
        "Scales of all worlds (C-M2)"


use rule larger as summarise_length with:
    input:
        runs=c2c_seeds("c2c/length/runs/{seed}.parquet"),
    output:
        table("c2c_m3", "M3", "How much of the cache is sent"),
    pathvars:
        job="summarise_length",
    localrule: True
    params:
        **publish("c2c.length.summary.summarise_length"),
        **channel_judged(),
    message:
        "Cache length against the FP16 channel (C-M3)"


use rule larger as summarise_layers with:
    input:
        runs=c2c_seeds("c2c/layers/runs/{seed}.parquet"),
        schedules=c2c_seeds("c2c/layers/schedules/{seed}.parquet"),
    output:
        table("c2c_m6", "M6", "Layer schedules"),
    pathvars:
        job="summarise_layers",
    localrule: True
    params:
        **publish("c2c.layers.summary.summarise_layers"),
        **channel_judged(),
    message:
        "Layer schedules against the FP16 channel and each other (C-M6)"


use rule larger as summarise_sensitivity with:
    input:
        runs=c2c_seeds("c2c/layers/sensitivity/{seed}.parquet"),
    output:
        table("c2c_sensitivity", "M6", "What each layer bears"),
    pathvars:
        job="summarise_sensitivity",
    localrule: True
    params:
        **publish("c2c.layers.summary.summarise_sensitivity"),
        stratum=conf("c2c", "points", "strata")[0],
        resamples=conf("c2c", "resamples"),
        seed=conf("seed"),
    message:
        "What each layer in another scheme costs (C-M6)"


use rule larger as summarise_selection with:
    input:
        runs=c2c_seeds("c2c/selection/runs/{seed}.parquet"),
    output:
        table("c2c_m8", "M8", "Which tokens are sent"),
    pathvars:
        job="summarise_selection",
    localrule: True
    params:
        **publish("c2c.selection.summary.summarise_selection"),
        **channel_judged(),
        oracles=channel_oracles(),
    message:
        "Selectors against the FP16 channel and against back (C-M8)"


use rule larger as join_overlap with:
    input:
        runs=c2c_seeds("c2c/selection/overlap/{seed}.parquet"),
    output:
        table("c2c_overlap", "M8", "What selectors have in common"),
    pathvars:
        job="join_overlap",
    localrule: True
    params:
        **publish("c2c.selection.summary.join_overlap"),
    message:
        "Overlap of selectors, of all worlds (C-M8)"


use rule larger as summarise_selection_stages with:
    input:
        runs=c2c_seeds("c2c/selection/times/{seed}.parquet"),
    output:
        table("c2c_m8_stages", "M8", "Stages of selective transfer"),
    pathvars:
        job="summarise_selection_stages",
    localrule: True
    params:
        **publish("c2c.selection.summary.summarise_stages"),
    message:
        "Time of each stage of selective transfer (C-M8)"


use rule larger as summarise_budget with:
    input:
        runs=channel_runs(),
    output:
        table("c2c_m4", "M4", "Accuracy against bytes"),
    pathvars:
        job="summarise_budget",
    localrule: True
    params:
        **publish("c2c.budget.summary.summarise_budget"),
        **channel_judged(),
        oracles=channel_oracles(),
    message:
        "Every point's accuracy against its measured bytes (C-M4)"


use rule larger as decide_channel with:
    input:
        budget="results/c2c_m4.parquet",
        selection="results/c2c_m8.parquet",
        runs=channel_runs(),
        development=c2c_seeds("c2c/layers/sensitivity/{seed}.parquet"),
    output:
        table("c2c_decisions", "M4", "Expectations, goals, tripwires"),
    pathvars:
        job="decide_channel",
    localrule: True
    params:
        **publish("c2c.budget.summary.decide_channel"),
        **channel_judged(),
    message:
        "What was expected of the channel, and what was found (C-R)"


use rule drawn as plot_budget with:
    input:
        points="results/c2c_m4.parquet",
    output:
        figure("c2c_budget", "M4", "Accuracy against measured bytes"),
    pathvars:
        job="plot_budget",
    localrule: True
    params:
        **plot("c2c.budget.figure.draw"),
    message:
        "Accuracy against measured bytes"


use rule drawn as plot_length with:
    input:
        points="results/c2c_m3.parquet",
    output:
        figure("c2c_length", "M3", "How much of the cache is sent"),
    pathvars:
        job="plot_length",
    localrule: True
    params:
        **plot("c2c.length.figure.draw"),
    message:
        "Accuracy by how much of the cache is sent"


use rule drawn as plot_sensitivity with:
    input:
        sensitivity="results/c2c_sensitivity.parquet",
        schedules=inter(f"c2c/layers/schedules/{conf('c2c', 'seeds')[0]}.parquet"),
        points="results/c2c_m6.parquet",
    output:
        figure("c2c_sensitivity", "M6", "What each layer bears, and schedules"),
    pathvars:
        job="plot_sensitivity",
    localrule: True
    params:
        **plot("c2c.layers.figure.draw"),
    message:
        "Sensitivity by layer, and the chosen schedules"


use rule drawn as plot_overlap with:
    input:
        overlap="results/c2c_overlap.parquet",
    output:
        figure("c2c_overlap", "M8", "What selectors have in common"),
    pathvars:
        job="plot_overlap",
    localrule: True
    params:
        **plot("c2c.selection.figure.draw"),
    message:
        "Overlap of selectors"
