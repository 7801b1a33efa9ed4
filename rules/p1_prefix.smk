# P1-2: the prefix cache, with and without (Sec 4.4).


rule sweep_prefix:
    message:
        "Prefill with and without the prefix cache, paired by document (P1-2.3)"
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    params:
        settings=conf("p1", "prefix"),
        runtime=runtime_settings(),
        code=code("sweep_prefix.py"),
    output:
        sweep=inter("p1/prefix_sweep.parquet"),
    log:
        logs("sweep_prefix"),
    benchmark:
        bench("sweep_prefix")
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    conda:
        ENVIRONMENT
    script:
        scripts("sweep_prefix.py")


rule summarise_prefix:
    message:
        "Savings with intervals, beside what the operation count predicts"
    input:
        sweep=inter("p1/prefix_sweep.parquet"),
        model=model_dir(),
    params:
        seed=conf("seed"),
        tolerance=conf("p1", "prefix", "tolerance"),
        code=code("summarise_prefix.py"),
    output:
        reported_table("p1_prefix_savings", "P1", "Prefix cache"),
    log:
        logs("summarise_prefix"),
    benchmark:
        bench("summarise_prefix")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("summarise_prefix.py")


rule plot_sec44:
    message:
        "Sec 4.4: prefill saved by prefix reuse"
    input:
        savings="results/p1_prefix_savings.parquet",
    params:
        scale=conf("scale"),
        code=code("plot_sec44.py"),
    output:
        reported_figure("p1_sec44", "P1", "Prefix cache"),
    log:
        logs("plot_sec44"),
    benchmark:
        bench("plot_sec44")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("plot_sec44.py")
