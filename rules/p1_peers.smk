# P1-1.3 to P1-1.5: other frameworks beside this engine, loading times, memory.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_frameworks,
    plot_frameworks,
    summarise_loading,
    plot_loading,


rule compare_frameworks:
    input:
        gates=inter("p1/gates.parquet"),
        gguf=inter("p1/gguf"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        runs=inter("p1/framework_runs.parquet"),
    log:
        logs("compare_frameworks"),
    benchmark:
        bench("compare_frameworks")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=grow(conf("p1", "peers", "mem_mb")),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "peers"),
        installed=peer_environments(),
        runtime=runtime_settings(),
        code=code("compare_frameworks.py"),
    message:
        "This engine and other frameworks in turns, each in its own process (P1-1.3)"
    script:
        scripts("compare_frameworks.py")


rule summarise_frameworks:
    input:
        runs=inter("p1/framework_runs.parquet"),
    output:
        reported_table("p1_frameworks", "P1", "Profile"),
    log:
        logs("summarise_frameworks"),
    benchmark:
        bench("summarise_frameworks")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_frameworks.py"),
    message:
        "Mean, spread, ratios and caveats of every framework"
    script:
        scripts("summarise_frameworks.py")


rule plot_frameworks:
    input:
        frameworks="results/p1_frameworks.parquet",
    output:
        reported_figure("p1_frameworks", "P1", "Profile"),
    log:
        logs("plot_frameworks"),
    benchmark:
        bench("plot_frameworks")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_frameworks.py"),
    message:
        "Decode speed of every framework beside the read bandwidth"
    script:
        scripts("plot_frameworks.py")


rule time_loading:
    input:
        gates=inter("p1/gates.parquet"),
        gguf=inter("p1/gguf"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        loading=inter("p1/loading_runs.parquet"),
        first_token=inter("p1/first_token_runs.parquet"),
    log:
        logs("time_loading"),
    benchmark:
        bench("time_loading")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "loading"),
        runtime=runtime_settings(),
        code=code("time_loading.py"),
    message:
        "Loading by safetensors, GGUF and Transformers, cold and warm; the first token (P1-1.4)"
    script:
        scripts("time_loading.py")


rule summarise_loading:
    input:
        runs=inter("p1/loading_runs.parquet"),
    output:
        reported_table("p1_loading", "P1", "Profile"),
    log:
        logs("summarise_loading"),
    benchmark:
        bench("summarise_loading")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_loading.py"),
    message:
        "Median load of every loader beside reading the bytes alone"
    script:
        scripts("summarise_loading.py")


rule plot_loading:
    input:
        loading="results/p1_loading.parquet",
        first_token=inter("p1/first_token_runs.parquet"),
    output:
        reported_figure("p1_loading", "P1", "Profile"),
    log:
        logs("plot_loading"),
    benchmark:
        bench("plot_loading")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_loading.py"),
    message:
        "Loading times, and a process's way to its first token"
    script:
        scripts("plot_loading.py")


rule measure_memory:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
    output:
        reported_table("p1_memory_budget", "P1", "Profile"),
    log:
        logs("measure_memory"),
    benchmark:
        bench("measure_memory")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=conf("p1", "memory"),
        runtime=runtime_settings(),
        code=code("measure_memory.py"),
    message:
        "Weights, KV, activations, gradients and optimizer: predicted and measured (P1-1.5)"
    script:
        scripts("measure_memory.py")
