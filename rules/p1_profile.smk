# P1-1: where a rollout's time goes, and how fast the engine is beside its peers.


rule make_workload:
    message:
        "Prompts that share a long instruction prefix, at controlled lengths"
    input:
        unpack(workload_inputs),
    params:
        documents=conf("p1", "prefix", "documents"),
        tokens=longest_prompt(),
        seed=conf("seed"),
        code=code("make_workload.py"),
    output:
        workload=inter("p1/workload.parquet"),
    log:
        logs("make_workload"),
    benchmark:
        bench("make_workload")
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(10),
    conda:
        ENVIRONMENT
    script:
        scripts("make_workload.py")


rule profile_rollout:
    message:
        "Prefill, decode, sampling and transfer over context x generation (P1-1.1)"
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    params:
        settings=conf("p1", "profile"),
        runtime=runtime_settings(),
        code=code("profile_rollout.py"),
    output:
        profile=inter("p1/rollout_profile.parquet"),
    log:
        logs("profile_rollout"),
    benchmark:
        bench("profile_rollout")
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    conda:
        ENVIRONMENT
    script:
        scripts("profile_rollout.py")


rule summarise_rollout:
    message:
        "Median, spread and prefill share of every rollout point"
    input:
        profile=inter("p1/rollout_profile.parquet"),
    params:
        code=code("summarise_rollout.py"),
    output:
        reported_table("p1_prefill_share", "P1", "Profile"),
    log:
        logs("summarise_rollout"),
    benchmark:
        bench("summarise_rollout")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("summarise_rollout.py")


rule plot_fig2:
    message:
        "Figure 2: the share of prefill in a rollout"
    input:
        share="results/p1_prefill_share.parquet",
    params:
        scale=conf("scale"),
        code=code("plot_fig2.py"),
    output:
        reported_figure("p1_fig2", "P1", "Profile"),
    log:
        logs("plot_fig2"),
    benchmark:
        bench("plot_fig2")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("plot_fig2.py")


rule compare_engines:
    message:
        "The engine and Transformers' generate, alternating in one process"
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    params:
        settings=conf("p1", "speed"),
        runtime=runtime_settings(),
        code=code("compare_engines.py"),
    output:
        reported_table("p1_engine_speed", "P1", "Profile"),
    log:
        logs("compare_engines"),
    benchmark:
        bench("compare_engines")
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    conda:
        ENVIRONMENT
    script:
        scripts("compare_engines.py")
