# P1-4: the batched rollout by phase, its consistency, and what an update on it takes (P1-6.1).


use rule timed as time_rollouts with:
    output:
        throughput=inter("p1/rollout/runs.parquet"),
    pathvars:
        job="time_rollouts",
    params:
        **study("p1.rollout.measure.measure_rollouts"),
        settings=conf_of(["p1", "rollout"], "points", "warmup"),
    message:
        "Continuous batching over prompts, candidates and rows (P1-4)"


use rule job as summarise_rollout with:
    input:
        throughput=inter("p1/rollout/runs.parquet"),
    output:
        table("p1_rollout_speed", "Rollout", "Speed of the batched rollout"),
    pathvars:
        job="summarise_rollout",
    localrule: True
    params:
        **publish("p1.rollout.summary.summarise_rollouts"),
    message:
        "Speed and share of the limit of every rollout point"


use rule drawn as plot_rollout with:
    input:
        speed="results/p1_rollout_speed.parquet",
    output:
        figure("p1_rollout", "Rollout", "Speed of the batched rollout"),
    pathvars:
        job="plot_rollout",
    localrule: True
    params:
        **plot("p1.rollout.figure.draw"),
    message:
        "Speed of the batched rollout against its batch size"


use rule held as check_rollouts with:
    input:
        **gated_prompts(),
    output:
        table("p1_rollout_consistency", "Rollout", "The same rollout by other means"),
    pathvars:
        job="check_rollouts",
    params:
        **publish("p1.consistency.measure.check_consistency"),
        settings=conf("p1", "consistency"),
    message:
        "The same rollout again, under other batch compositions, and by other means (P1-4.3)"


use rule timed as time_updates with:
    output:
        updates=inter("p1/learner/runs.parquet"),
    pathvars:
        job="time_updates",
    params:
        **study("p1.learner.measure.time_updates"),
        **conf_of(["p1", "lora"], "rank", "alpha"),
        settings=conf("p1", "learner"),
    message:
        "A LoRA update on completions, prompts shared or not, one micro-batch each (P1-6.1)"


use rule job as summarise_updates with:
    input:
        updates=inter("p1/learner/runs.parquet"),
    output:
        table("p1_learner", "Rollout", "A LoRA update on completions"),
    pathvars:
        job="summarise_updates",
    localrule: True
    params:
        **publish("p1.learner.summary.summarise_updates"),
    message:
        "Time, operations and memory of an update, prompts shared or not"
