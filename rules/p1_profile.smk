# P1-1: where a rollout's time goes, and how fast the engine is beside its peers.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_rollout,
    plot_fig2,


rule make_workload:
    input:
        unpack(workload_inputs),
    output:
        workload=inter("p1/workload.parquet"),
    log:
        logs("make_workload"),
    benchmark:
        bench("make_workload")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=minutes(10),
    params:
        documents=conf("p1", "prefix", "documents"),
        tokens=longest_prompt(),
        seed=conf("seed"),
        code=code("make_workload.py"),
    message:
        "Prompts that share a long instruction prefix, at controlled lengths"
    script:
        scripts("make_workload.py")


rule profile_rollout:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        profile=inter("p1/rollout_profile.parquet"),
    log:
        logs("profile_rollout"),
    benchmark:
        bench("profile_rollout")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "profile"),
        runtime=runtime_settings(),
        code=code("profile_rollout.py"),
    message:
        "Prefill, decode, sampling and transfer over context x generation (P1-1.1)"
    script:
        scripts("profile_rollout.py")


rule summarise_rollout:
    input:
        profile=inter("p1/rollout_profile.parquet"),
        stages=inter("p1/rollout_stages.parquet"),
    output:
        reported_table("p1_prefill_share", "P1", "Profile"),
    log:
        logs("summarise_rollout"),
    benchmark:
        bench("summarise_rollout")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_rollout.py"),
    message:
        "Median, spread and prefill share of every rollout point"
    script:
        scripts("summarise_rollout.py")


rule plot_fig2:
    input:
        share="results/p1_prefill_share.parquet",
    output:
        reported_figure("p1_fig2", "P1", "Profile"),
    log:
        logs("plot_fig2"),
    benchmark:
        bench("plot_fig2")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_fig2.py"),
    message:
        "Figure 2: the share of prefill in a rollout"
    script:
        scripts("plot_fig2.py")


rule compare_engines:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        reported_table("p1_engine_speed", "P1", "Profile"),
    log:
        logs("compare_engines"),
    benchmark:
        bench("compare_engines")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "speed"),
        runtime=runtime_settings(),
        code=code("compare_engines.py"),
    message:
        "The engine and Transformers' generate, alternating in one process"
    script:
        scripts("compare_engines.py")
