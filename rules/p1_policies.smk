# P1-5 and P1-6.1: cache policies, simulated, and what they cost by the measured tables.


# Seconds of work: not worth a cluster job each.
localrules:
    simulate_policies,
    model_cost,
    summarise_policies,
    plot_fig3,


rule sweep_restart:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        sweep=inter("p1/restart_sweep.parquet"),
    log:
        logs("sweep_restart"),
    benchmark:
        bench("sweep_restart")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "restart"),
        contexts=cost_contexts(),
        policies=conf("p1", "policies"),
        runtime=runtime_settings(),
        code=code("sweep_restart.py"),
    message:
        "Prefill restarted at a layer, and the correction of stale KV, timed"
    script:
        scripts("sweep_restart.py")


rule simulate_policies:
    input:
        model=model_dir(),
    output:
        rounds=inter("p1/policy_rounds.parquet"),
    log:
        logs("simulate_policies"),
    benchmark:
        bench("simulate_policies")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        policies=conf("p1", "policies"),
        rounds=conf("p1", "rounds"),
        code=code("simulate_policies.py"),
    message:
        "What each policy recomputes and reuses, round by round (P1-5.3)"
    script:
        scripts("simulate_policies.py")


rule model_cost:
    input:
        profile=inter("p1/rollout_profile.parquet"),
        prefix=inter("p1/prefix_sweep.parquet"),
        restart=inter("p1/restart_sweep.parquet"),
        latency=inter("p1/lora/latency.parquet"),
        rounds=inter("p1/policy_rounds.parquet"),
    output:
        cost=inter("p1/cumulative_cost.parquet"),
    log:
        logs("model_cost"),
    benchmark:
        bench("model_cost")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(10),
    params:
        rounds=conf("p1", "rounds"),
        seed=conf("seed"),
        code=code("model_cost.py"),
    message:
        "Cumulative cost of every policy, from the measured tables alone (P1-6.1)"
    script:
        scripts("model_cost.py")


rule summarise_policies:
    input:
        rounds=inter("p1/policy_rounds.parquet"),
        cost=inter("p1/cumulative_cost.parquet"),
    output:
        reported_table("p1_policies", "P1", "Policies"),
    log:
        logs("summarise_policies"),
    benchmark:
        bench("summarise_policies")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_policies.py"),
    message:
        "Policies side by side: recompute ratio, cost and savings"
    script:
        scripts("summarise_policies.py")


rule plot_fig3:
    input:
        cost=inter("p1/cumulative_cost.parquet"),
    output:
        reported_figure("p1_fig3", "P1", "Policies"),
    log:
        logs("plot_fig3"),
    benchmark:
        bench("plot_fig3")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        rounds=conf("p1", "rounds"),
        code=code("plot_fig3.py"),
    message:
        "Figure 3: cumulative cost of the cache policies"
    script:
        scripts("plot_fig3.py")
