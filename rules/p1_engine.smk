# P1-1, P1-4: how close the engine comes to what the memory allows.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_roofline,
    plot_roofline,


rule measure_roofline:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
    output:
        decode=inter("p1/decode_roofline.parquet"),
        kernels=inter("p1/decode_kernels.parquet"),
        prefills=inter("p1/prefill_times.parquet"),
    log:
        logs("measure_roofline"),
    benchmark:
        bench("measure_roofline")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf("p1", "roofline"),
        runtime=runtime_settings(),
        code=code("measure_roofline.py"),
    message:
        "Decoding against the read bandwidth, by batch size and by kernel"
    script:
        scripts("measure_roofline.py")


rule summarise_roofline:
    input:
        decode=inter("p1/decode_roofline.parquet"),
    output:
        reported_table("p1_roofline", "P1", "Engine"),
    log:
        logs("summarise_roofline"),
    benchmark:
        bench("summarise_roofline")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_roofline.py"),
    message:
        "Medians and spread of decoding against the memory's limit"
    script:
        scripts("summarise_roofline.py")


rule plot_roofline:
    input:
        roofline="results/p1_roofline.parquet",
        kernels=inter("p1/decode_kernels.parquet"),
    output:
        reported_figure("p1_roofline", "P1", "Engine"),
    log:
        logs("plot_roofline"),
    benchmark:
        bench("plot_roofline")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_roofline.py"),
    message:
        "Decoding speed against the memory's limit"
    script:
        scripts("plot_roofline.py")
