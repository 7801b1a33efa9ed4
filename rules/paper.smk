# Verdicts computed from tables, and what the paper still lacks.


rule decide:
    message:
        "Every go/no-go rule, applied to the tables it names"
    input:
        gates=inter("p1/gates.parquet"),
        share="results/p1_prefill_share.parquet",
        savings="results/p1_prefix_savings.parquet",
        speed="results/p1_engine_speed.parquet",
    params:
        thresholds=conf("p1", "decisions"),
        scale=conf("scale"),
        code=code("decide.py"),
    output:
        reported_table("decisions", "Paper"),
    log:
        logs("decide"),
    benchmark:
        bench("decide")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("decide.py")


rule assess_readiness:
    message:
        "For every item of the paper: ready, or what is missing (P1-11.1)"
    input:
        P1_PRODUCTS,
        decisions="results/decisions.parquet",
    params:
        scale=conf("scale"),
        code=code("assess_readiness.py"),
    output:
        reported_table("readiness", "Paper"),
    log:
        logs("assess_readiness"),
    benchmark:
        bench("assess_readiness")
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    conda:
        ENVIRONMENT
    script:
        scripts("assess_readiness.py")
