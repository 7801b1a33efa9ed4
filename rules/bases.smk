# Rules to inherit from: what log, benchmark, environment and resources of all rules look like.
# A rule says what is its own: files, params, message, and the name of its jobs (`pathvars`).
# No file matches the bases' output, so that none of them can run or be a target.


rule job:
    output:
        "{never}",
    log:
        f"logs/{conf('scale')}/<job>.log",
    benchmark:
        f"results/{conf('scale')}/benchmarks/<job>.jsonl"
    pathvars:
        job="{never}",
    wildcard_constraints:
        never="(?!)",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    script:
        str(ROOT / "workflow" / "scripts" / "{params.script}")


# It reads texts or small models.
use rule job as larger with:
    resources:
        mem_mb=grow(2000),
        runtime=minutes(10),


# It draws a figure.
use rule job as drawn with:
    params:
        scale=conf("scale"),


# It holds a model.
use rule job as held with:
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        runtime=runtime_settings(),


# It measures times, so that no other job that does may run beside it.
use rule held as timed with:
    input:
        **gated_prompts(),
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,


# It measures two pipeline stages, processes of one job.
use rule timed as staged with:
    threads: 2
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=conf("p1", "pipeline", "gpus") if gpus() else 0,
        timing=1,
