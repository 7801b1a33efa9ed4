# P1-1.2: the model on two pipeline stages, two processes of one job on one machine.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_pipeline,
    plot_pipeline,
    plot_gantt,


rule profile_layers:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
    output:
        costs=inter("p1/layer_costs.parquet"),
    log:
        logs("profile_layers"),
    benchmark:
        bench("profile_layers")
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=stage_gpus(),
        timing=1,
    params:
        settings=stage_settings("layers"),
        runtime=runtime_settings(),
        code=code("profile_layers.py"),
    message:
        "What each layer, embedding, head and message costs: the prediction's input"
    script:
        scripts("profile_layers.py")


rule sweep_splits:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        runs=inter("p1/pipeline_runs.parquet"),
        events=inter("p1/pipeline_events.parquet"),
    log:
        logs("sweep_splits"),
    benchmark:
        bench("sweep_splits")
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=stage_gpus(),
        timing=1,
    params:
        settings=stage_settings("sweep"),
        runtime=runtime_settings(),
        code=code("sweep_splits.py"),
    message:
        "Two stages: every split, with and without overlap (P1-1.2)"
    script:
        scripts("sweep_splits.py")


rule profile_stages:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        profile=inter("p1/rollout_stages.parquet"),
    log:
        logs("profile_stages"),
    benchmark:
        bench("profile_stages")
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=stage_gpus(),
        timing=1,
    params:
        settings=stage_settings("rollout"),
        runtime=runtime_settings(),
        code=code("profile_stages.py"),
    message:
        "A rollout's phases on two stages, over context x generation (P1-1.1)"
    script:
        scripts("profile_stages.py")


rule summarise_pipeline:
    input:
        runs=inter("p1/pipeline_runs.parquet"),
        costs=inter("p1/layer_costs.parquet"),
        anchor=anchor(),
    output:
        reported_table("p1_pipeline", "P1", "Pipeline"),
    log:
        logs("summarise_pipeline"),
    benchmark:
        bench("summarise_pipeline")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_pipeline.py"),
    message:
        "Splits measured and predicted, and the solver's best one"
    script:
        scripts("summarise_pipeline.py")


rule plot_pipeline:
    input:
        pipeline="results/p1_pipeline.parquet",
    output:
        reported_figure("p1_pipeline_splits", "P1", "Pipeline"),
    log:
        logs("plot_pipeline"),
    benchmark:
        bench("plot_pipeline")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_pipeline.py"),
    message:
        "Tokens per second by split, measured and predicted"
    script:
        scripts("plot_pipeline.py")


rule plot_gantt:
    input:
        pipeline="results/p1_pipeline.parquet",
        events=inter("p1/pipeline_events.parquet"),
    output:
        reported_figure("p1_gantt", "P1", "Pipeline"),
    log:
        logs("plot_gantt"),
    benchmark:
        bench("plot_gantt")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_gantt.py"),
    message:
        "What both stages did when: the pipeline's timing diagram"
    script:
        scripts("plot_gantt.py")
