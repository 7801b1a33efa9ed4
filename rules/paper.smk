# Verdicts computed from tables, and what the paper still lacks.


# Seconds of work: not worth a cluster job each.
localrules:
    decide,
    assess_readiness,


rule decide:
    input:
        gates=inter("p1/gates.parquet"),
        share="results/p1_prefill_share.parquet",
        savings="results/p1_prefix_savings.parquet",
        speed="results/p1_engine_speed.parquet",
        alignment="results/p1_lora_alignment.parquet",
        weights=inter("p1/lora/weights.parquet"),
        latency="results/p1_lora_latency.parquet",
        exact=inter("p1/lora/exact.parquet"),
    output:
        reported_table("decisions", "Paper"),
    log:
        logs("decide"),
    benchmark:
        bench("decide")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        thresholds=conf("p1", "decisions"),
        scale=conf("scale"),
        code=code("decide.py"),
    message:
        "Every go/no-go rule, applied to the tables it names"
    script:
        scripts("decide.py")


rule assess_readiness:
    input:
        P1_PRODUCTS,
        decisions="results/decisions.parquet",
    output:
        reported_table("readiness", "Paper"),
    log:
        logs("assess_readiness"),
    benchmark:
        bench("assess_readiness")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        scale=conf("scale"),
        code=code("assess_readiness.py"),
    message:
        "For every item of the paper: ready, or what is missing (P1-11.1)"
    script:
        scripts("assess_readiness.py")
