# P1-1.2: the model on two pipeline stages, two processes of one job on one machine.


use rule staged as profile_layers with:
    input:
        **gated_model(),
    output:
        costs=inter("p1/pipeline/costs.parquet"),
    pathvars:
        job="profile_layers",
    params:
        **study("p1.pipeline.measure.profile_layers"),
        settings=pipeline_settings("cost_repeats"),
    message:
        "What each layer, embedding, head and message costs: the prediction's input"


use rule staged as sweep_splits with:
    output:
        runs=inter("p1/pipeline/runs.parquet"),
        events=inter("p1/pipeline/events.parquet"),
    pathvars:
        job="sweep_splits",
    params:
        **study("p1.pipeline.measure.sweep_splits"),
        settings=pipeline_settings("split_fractions", "warmup", "repeats"),
    message:
        "Two stages: every split, with and without overlap (P1-1.2)"


use rule staged as profile_stages with:
    output:
        profile=inter("p1/profile/stages.parquet"),
    pathvars:
        job="profile_stages",
    params:
        **study("p1.profile.stages.profile_stages"),
        settings=staged_profile_settings(),
    message:
        "A rollout's phases on two stages, over context x generation (P1-1.1)"


use rule job as summarise_pipeline with:
    input:
        runs=inter("p1/pipeline/runs.parquet"),
        costs=inter("p1/pipeline/costs.parquet"),
        anchor=conf("p1", "pipeline", "anchor") or [],
    output:
        table("p1_pipeline", "Pipeline", "Two stages by split"),
    pathvars:
        job="summarise_pipeline",
    localrule: True
    params:
        **publish("p1.pipeline.summary.summarise_pipeline"),
    message:
        "Splits measured and predicted, and the solver's best one"


use rule drawn as plot_pipeline with:
    input:
        pipeline="results/p1_pipeline.parquet",
    output:
        figure("p1_pipeline_splits", "Pipeline", "Speed of two stages by split"),
    pathvars:
        job="plot_pipeline",
    localrule: True
    params:
        **plot("p1.pipeline.figure.draw_splits"),
    message:
        "Tokens per second by split, measured and predicted"


use rule drawn as plot_gantt with:
    input:
        pipeline="results/p1_pipeline.parquet",
        events=inter("p1/pipeline/events.parquet"),
    output:
        figure("p1_gantt", "Pipeline", "What two stages did when"),
    pathvars:
        job="plot_gantt",
    localrule: True
    params:
        **plot("p1.pipeline.figure.draw_gantt"),
    message:
        "What both stages did when: the pipeline's timing diagram"
