# P1-5 and P1-6.1: cache policies, simulated, and what they cost by the measured tables.


rule sweep_restart:
    message:
        "Prefill restarted at a layer, and the correction of stale KV, timed"
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    params:
        settings=conf("p1", "restart"),
        contexts=cost_contexts(),
        policies=conf("p1", "policies"),
        runtime=runtime_settings(),
        code=code("sweep_restart.py"),
    output:
        sweep=inter("p1/restart_sweep.parquet"),
    log:
        logs("sweep_restart"),
    benchmark:
        bench("sweep_restart")
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    conda:
        ENVIRONMENT
    script:
        scripts("sweep_restart.py")


rule simulate_policies:
    message:
        "What each policy recomputes and reuses, round by round (P1-5.3)"
    input:
        model=model_dir(),
    params:
        policies=conf("p1", "policies"),
        rounds=conf("p1", "rounds"),
        code=code("simulate_policies.py"),
    output:
        rounds=inter("p1/policy_rounds.parquet"),
    log:
        logs("simulate_policies"),
    benchmark:
        bench("simulate_policies")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("simulate_policies.py")


rule model_cost:
    message:
        "Cumulative cost of every policy, from the measured tables alone (P1-6.1)"
    input:
        profile=inter("p1/rollout_profile.parquet"),
        prefix=inter("p1/prefix_sweep.parquet"),
        restart=inter("p1/restart_sweep.parquet"),
        rounds=inter("p1/policy_rounds.parquet"),
    params:
        rounds=conf("p1", "rounds"),
        seed=conf("seed"),
        code=code("model_cost.py"),
    output:
        cost=inter("p1/cumulative_cost.parquet"),
    log:
        logs("model_cost"),
    benchmark:
        bench("model_cost")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(10),
    conda:
        ENVIRONMENT
    script:
        scripts("model_cost.py")


rule summarise_policies:
    message:
        "Policies side by side: recompute ratio, cost and savings"
    input:
        rounds=inter("p1/policy_rounds.parquet"),
        cost=inter("p1/cumulative_cost.parquet"),
    params:
        code=code("summarise_policies.py"),
    output:
        reported_table("p1_policies", "P1", "Policies"),
    log:
        logs("summarise_policies"),
    benchmark:
        bench("summarise_policies")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("summarise_policies.py")


rule plot_fig3:
    message:
        "Figure 3: cumulative cost of the cache policies"
    input:
        cost=inter("p1/cumulative_cost.parquet"),
    params:
        scale=conf("scale"),
        rounds=conf("p1", "rounds"),
        code=code("plot_fig3.py"),
    output:
        reported_figure("p1_fig3", "P1", "Policies"),
    log:
        logs("plot_fig3"),
    benchmark:
        bench("plot_fig3")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("plot_fig3.py")
