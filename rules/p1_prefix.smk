# P1-2: the prefix cache, with and without (Sec 4.4).


# Seconds of work: not worth a cluster job each.
localrules:
    join_prefix,
    summarise_prefix,
    plot_sec44,


rule sweep_prefix:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        sweep=inter("p1/prefix_sweep/{shard}.parquet"),
    log:
        logs("sweep_prefix_{shard}"),
    benchmark:
        bench("sweep_prefix_{shard}")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "prefix"),
        shard=lambda w: int(w.shard),
        runtime=runtime_settings(),
        code=code("sweep_prefix.py"),
    message:
        "Prefill with and without the prefix cache, shard {wildcards.shard} (P1-2.3)"
    script:
        scripts("sweep_prefix.py")


rule join_prefix:
    input:
        shards=expand(
            inter("p1/prefix_sweep/{shard}.parquet"),
            shard=range(conf("p1", "prefix", "shards")),
        ),
    output:
        sweep=inter("p1/prefix_sweep.parquet"),
    log:
        logs("join_prefix"),
    benchmark:
        bench("join_prefix")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    params:
        documents=conf("p1", "prefix", "documents"),
        code=code("join_prefix.py"),
    message:
        "All shards of the prefix sweep in one table, every document once"
    script:
        scripts("join_prefix.py")


rule summarise_prefix:
    input:
        sweep=inter("p1/prefix_sweep.parquet"),
        model=model_dir(),
    output:
        reported_table("p1_prefix_savings", "P1", "Prefix cache"),
    log:
        logs("summarise_prefix"),
    benchmark:
        bench("summarise_prefix")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    params:
        seed=conf("seed"),
        tolerance=conf("p1", "prefix", "tolerance"),
        code=code("summarise_prefix.py"),
    message:
        "Savings with intervals, beside what the operation count predicts"
    script:
        scripts("summarise_prefix.py")


rule plot_sec44:
    input:
        savings="results/p1_prefix_savings.parquet",
    output:
        reported_figure("p1_sec44", "P1", "Prefix cache"),
    log:
        logs("plot_sec44"),
    benchmark:
        bench("plot_sec44")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    params:
        scale=conf("scale"),
        code=code("plot_sec44.py"),
    message:
        "Sec 4.4: prefill saved by prefix reuse"
    script:
        scripts("plot_sec44.py")
