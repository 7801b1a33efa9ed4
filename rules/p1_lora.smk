# P1-3: adapters, their alignment with PEFT, and the latency of switching them.


# Seconds of work: not worth a cluster job each.
localrules:
    summarise_lora_alignment,
    summarise_lora_latency,
    plot_lora_layers,
    plot_lora_blocks,
    plot_lora_latency,


rule make_adapters:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
    output:
        adapters=directory(inter("p1/adapters")),
    log:
        logs("make_adapters"),
    benchmark:
        bench("make_adapters")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=conf_of(
            ["p1", "lora"],
            *(
                "rank",
                "alpha",
                "b_std",
                "train_steps",
                "train_tokens",
                "learning_rate",
            ),
        ),
        runtime=runtime_settings(),
        code=code("make_adapters.py"),
    message:
        "Adapters in PEFT's format: by PEFT, drawn, trained (P1-3.4)"
    script:
        scripts("make_adapters.py")


rule align_lora:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
        workload=inter("p1/workload.parquet"),
        adapters=inter("p1/adapters"),
    output:
        cases=inter("p1/lora/cases.parquet"),
        weights=inter("p1/lora/weights.parquet"),
        layers=inter("p1/lora/layers.parquet"),
        freeze=inter("p1/lora/freeze.parquet"),
        blocks=inter("p1/lora/blocks.parquet"),
        spot=inter("p1/lora/spot.parquet"),
    log:
        logs("align_lora"),
    benchmark:
        bench("align_lora")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=conf_of(
            ["p1", "lora"],
            *("dtypes", "prompts", "tokens", "profiled"),
            *("layer_fractions", "freeze_fractions", "thresholds"),
        ),
        runtime=runtime_settings(),
        code=code("align_lora.py"),
    message:
        "Adapters against PEFT: logits, weights, layers, blocks, operators (P1-3.4 to P1-3.7)"
    script:
        scripts("align_lora.py")


rule time_lora:
    input:
        gates=inter("p1/gates.parquet"),
        model=model_dir(),
    output:
        latency=inter("p1/lora/latency.parquet"),
        exact=inter("p1/lora/exact.parquet"),
    log:
        logs("time_lora"),
    benchmark:
        bench("time_lora")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        settings=conf_of(
            ["p1", "lora"],
            *("rank", "alpha", "b_std", "keeps", "warmup", "repeats", "swaps"),
        ),
        runtime=runtime_settings(),
        code=code("time_lora.py"),
    message:
        "Adapters applied, replaced and rolled back, beside PEFT (P1-3.3)"
    script:
        scripts("time_lora.py")


rule summarise_lora_alignment:
    input:
        cases=inter("p1/lora/cases.parquet"),
    output:
        reported_table("p1_lora_alignment", "P1", "LoRA"),
    log:
        logs("summarise_lora_alignment"),
    benchmark:
        bench("summarise_lora_alignment")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        resamples=conf("p1", "rounds", "bootstrap"),
        seed=conf("seed"),
        code=code("summarise_lora_alignment.py"),
    message:
        "The worst difference to PEFT of each adapter and number format"
    script:
        scripts("summarise_lora_alignment.py")


rule summarise_lora_latency:
    input:
        latency=inter("p1/lora/latency.parquet"),
    output:
        reported_table("p1_lora_latency", "P1", "LoRA"),
    log:
        logs("summarise_lora_latency"),
    benchmark:
        bench("summarise_lora_latency")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("summarise_lora_latency.py"),
    message:
        "Switching adapters, against the memory's limit and PEFT"
    script:
        scripts("summarise_lora_latency.py")


rule plot_lora_layers:
    input:
        layers=inter("p1/lora/layers.parquet"),
        freeze=inter("p1/lora/freeze.parquet"),
    output:
        reported_figure("p1_lora_layers", "P1", "LoRA"),
    log:
        logs("plot_lora_layers"),
    benchmark:
        bench("plot_lora_layers")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_lora_layers.py"),
    message:
        "Differences to PEFT by layer (P1-3.6)"
    script:
        scripts("plot_lora_layers.py")


rule plot_lora_blocks:
    input:
        blocks=inter("p1/lora/blocks.parquet"),
        spot=inter("p1/lora/spot.parquet"),
    output:
        reported_figure("p1_lora_blocks", "P1", "LoRA"),
    log:
        logs("plot_lora_blocks"),
    benchmark:
        bench("plot_lora_blocks")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_lora_blocks.py"),
    message:
        "Differences to PEFT by block, and where they enter (P1-3.7)"
    script:
        scripts("plot_lora_blocks.py")


rule plot_lora_latency:
    input:
        latency="results/p1_lora_latency.parquet",
        exact=inter("p1/lora/exact.parquet"),
    output:
        reported_figure("p1_lora_latency", "P1", "LoRA"),
    log:
        logs("plot_lora_latency"),
    benchmark:
        bench("plot_lora_latency")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("plot_lora_latency.py"),
    message:
        "Switching adapters (P1-3.3)"
    script:
        scripts("plot_lora_latency.py")
