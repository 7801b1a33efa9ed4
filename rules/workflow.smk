# What the workflow itself costs: after all products, so that every programme sees its overhead.


use rule job as time_workflow with:
    input:
        products=products(*PROGRAMMES.values(), "Paper"),
    output:
        steps=inter("workflow/steps.parquet"),
    pathvars:
        job="time_workflow",
    localrule: True
    resources:
        mem_mb=grow(1000),
        runtime=minutes(10),
        timing=1,
    params:
        **study("workflow.cost.measure.time_steps"),
        settings=conf("workflow"),
        given=given_settings(),
    message:
        "Time what a user types: dry run, no-op rerun, an empty job"


use rule job as collect_job_cost with:
    input:
        products=products(*PROGRAMMES.values(), "Paper"),
    output:
        table("workflow_jobs", "Workflow", "Time of every job"),
    pathvars:
        job="collect_job_cost",
    localrule: True
    params:
        **publish("workflow.cost.make.collect_jobs"),
        stages=stages(),
    message:
        "Every job that a product comes from: its time, and what of it was overhead"


use rule job as summarise_workflow with:
    input:
        jobs="results/workflow_jobs.parquet",
        steps=inter("workflow/steps.parquet"),
    output:
        table("workflow_cost", "Workflow", "Time by rule, and overhead"),
    pathvars:
        job="summarise_workflow",
    localrule: True
    params:
        **publish("workflow.cost.summary.cost_by_rule"),
        goal=conf("workflow", "overhead_goal"),
    message:
        "Time by rule, and the share spent on starting, importing and loading"
