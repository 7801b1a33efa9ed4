# P1-1: where a rollout's time goes, and how fast the engine is beside its peers.


use rule larger as make_workload with:
    input:
        unpack(workload_inputs),
    output:
        workload=inter("p1/workload.parquet"),
    pathvars:
        job="make_workload",
    params:
        **study("p1.workload.make.make_workload"),
        documents=conf("p1", "prefix", "documents"),
        tokens=longest_prompt(),
        seed=conf("seed"),
    message:
        "Prompts that share a long instruction prefix, at controlled lengths"


use rule timed as profile_rollout with:
    output:
        profile=inter("p1/profile/runs.parquet"),
    pathvars:
        job="profile_rollout",
    params:
        **study("p1.profile.measure.profile_rollout"),
        settings=conf("p1", "profile"),
    message:
        "Prefill, decode, sampling and transfer over context x generation (P1-1.1)"


use rule job as summarise_profile with:
    input:
        profile=inter("p1/profile/runs.parquet"),
        stages=inter("p1/profile/stages.parquet"),
        throughput=inter("p1/rollout/runs.parquet"),
    output:
        table("p1_prefill_share", "Profile", "Phases of a rollout"),
    pathvars:
        job="summarise_profile",
    localrule: True
    params:
        **publish("p1.profile.summary.prefill_share"),
    message:
        "Median, spread and prefill share of every rollout point"


use rule drawn as plot_fig2 with:
    input:
        share="results/p1_prefill_share.parquet",
    output:
        figure("p1_fig2", "Profile", "Share of prefill in a rollout"),
    pathvars:
        job="plot_fig2",
    localrule: True
    params:
        **plot("p1.profile.figure.draw"),
        operating=conf("p1", "rollout", "points")[0],
    message:
        "Figure 2: the share of prefill in a rollout"


use rule timed as compare_engines with:
    output:
        table("p1_engine_speed", "Profile", "Engine against Transformers"),
    pathvars:
        job="compare_engines",
    params:
        **publish("p1.speed.measure.compare_engines"),
        settings=conf("p1", "speed"),
    message:
        "The engine and Transformers' generate, alternating in one process"
