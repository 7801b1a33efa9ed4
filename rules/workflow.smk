# What the workflow itself costs: behind all products, so that every programme sees its overhead.


# Seconds of work: not worth a cluster job each.
localrules:
    time_workflow,
    collect_job_cost,
    summarise_workflow,


rule time_workflow:
    input:
        P1_PRODUCTS,
        PAPER_PRODUCTS,
    output:
        steps=inter("workflow/steps.parquet"),
    log:
        logs("time_workflow"),
    benchmark:
        bench("time_workflow")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(10),
        timing=1,
    params:
        settings=conf("workflow"),
        given=given_settings(),
        code=code("time_workflow.py"),
    message:
        "Time what a user types: dry run, no-op rerun, an empty job"
    script:
        scripts("time_workflow.py")


rule collect_job_cost:
    input:
        P1_PRODUCTS,
        PAPER_PRODUCTS,
    output:
        reported_table("workflow_jobs", "Workflow"),
    log:
        logs("collect_job_cost"),
    benchmark:
        bench("collect_job_cost")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    params:
        stages=stages(),
        code=code("collect_job_cost.py"),
    message:
        "Every job behind the products: its time, and what of it was overhead"
    script:
        scripts("collect_job_cost.py")


rule summarise_workflow:
    input:
        jobs="results/workflow_jobs.parquet",
        steps=inter("workflow/steps.parquet"),
    output:
        reported_table("workflow_cost", "Workflow"),
    log:
        logs("summarise_workflow"),
    benchmark:
        bench("summarise_workflow")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=grow(5),
    params:
        goal=conf("workflow", "overhead_goal"),
        code=code("summarise_workflow.py"),
    message:
        "Time by rule, and the share spent on starting, importing and loading"
    script:
        scripts("summarise_workflow.py")
