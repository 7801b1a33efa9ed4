# P1-4: the batched rollout: speed against the read bandwidth, and consistency.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_rollouts,
    plot_rollout,


rule time_rollouts:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        throughput=inter("p1/rollout_throughput.parquet"),
    log:
        logs("time_rollouts"),
    benchmark:
        bench("time_rollouts")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=rollout_settings(),
        runtime=runtime_settings(),
        code=code("time_rollouts.py"),
    message:
        "Continuous batching over prompts, candidates and rows (P1-4)"
    script:
        scripts("time_rollouts.py")


rule summarise_rollouts:
    input:
        throughput=inter("p1/rollout_throughput.parquet"),
    output:
        reported_table("p1_rollout_speed", "P1", "Rollout"),
    log:
        logs("summarise_rollouts"),
    benchmark:
        bench("summarise_rollouts")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_rollouts.py"),
    message:
        "Speed and share of the limit of every rollout point"
    script:
        scripts("summarise_rollouts.py")


rule check_rollouts:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        reported_table("p1_rollout_consistency", "P1", "Rollout"),
    log:
        logs("check_rollouts"),
    benchmark:
        bench("check_rollouts")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=conf("p1", "rollouts", "checks"),
        runtime=runtime_settings(),
        code=code("check_rollouts.py"),
    message:
        "The same rollout again, in other company, and by other means (P1-4.3)"
    script:
        scripts("check_rollouts.py")


rule plot_rollout:
    input:
        speed="results/p1_rollout_speed.parquet",
    output:
        reported_figure("p1_rollout", "P1", "Rollout"),
    log:
        logs("plot_rollout"),
    benchmark:
        bench("plot_rollout")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_rollout.py"),
    message:
        "Speed of the batched rollout against its batch size"
    script:
        scripts("plot_rollout.py")
