# Streaming: sinks, losses and times of eviction methods at equal peak visible length (S-0 to S-7).


use rule held as measure_sinks with:
    input:
        **streaming_inputs(),
    output:
        mass=inter("streaming/sinks/mass.parquet"),
        gaps=inter("streaming/sinks/gaps.parquet"),
    pathvars:
        job="measure_sinks",
    threads: 1
    params:
        **study("streaming.sinks.measure.measure_sinks"),
        methods=code_of(
            *eviction.modules([{"name": "window"}, {"name": "streaming_llm"}])
        ),
        evaluated=conf_of(["streaming"], "long", "short"),
        peak=conf("streaming", "gate", "peak"),
    message:
        "Attention mass on the start token, and what a window costs without it (S-0)"


use rule job as judge_sinks with:
    input:
        mass=inter("streaming/sinks/mass.parquet"),
        gaps=inter("streaming/sinks/gaps.parquet"),
    output:
        table("streaming_gate", "Diagnose", "Whether the model has attention sinks"),
    pathvars:
        job="judge_sinks",
    localrule: True
    params:
        **publish("streaming.sinks.summary.judge_sinks"),
        min_mass=conf("streaming", "gate", "min_mass"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Without sinks no cliff is claimed"


# One job for each method, so that an edited one is measured again alone.
use rule held as measure_eviction with:
    input:
        **streaming_inputs(),
    output:
        runs=inter("streaming/quality/runs/{method}.parquet"),
    pathvars:
        job="measure_eviction_{method}",
    threads: 1
    params:
        **study("streaming.quality.measure.measure_quality"),
        specs=lambda w: streaming_points(w.method),
        methods=lambda w: code_of(*eviction.modules(streaming_points(w.method))),
        evaluated=conf_of(["streaming"], "long", "short"),
        alone=conf("streaming", "alone"),
    message:
        "Losses token by token under {wildcards.method}"


use rule larger as summarise_quality with:
    input:
        **quality_basis(),
    output:
        table("streaming_quality", "Diagnose", "Eviction methods at equal peak"),
    pathvars:
        job="summarise_quality",
    localrule: True
    params:
        **publish("streaming.quality.summary.summarise_quality"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Losses above per-token eviction at equal peak (S-2)"


use rule larger as summarise_spikes with:
    input:
        **quality_basis(),
    output:
        table("streaming_spikes", "Diagnose", "Loss by steps since a prune"),
    pathvars:
        job="summarise_spikes",
    localrule: True
    params:
        **publish("streaming.quality.summary.summarise_spikes"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Losses above per-token eviction by steps since a prune (S-2)"


use rule held as measure_cause with:
    input:
        model=model_dir(conf("streaming", "model")),
        long=streaming_inputs()["long"],
    output:
        runs=inter("streaming/cause/runs.parquet"),
        parts=inter("streaming/cause/parts.parquet"),
    pathvars:
        job="measure_cause",
    threads: 1
    params:
        **study("streaming.cause.measure.measure_cause"),
        streams=conf("streaming", "long"),
        cause=conf("streaming", "cause"),
    message:
        "What prunes take from attention, and which part the loss comes from (S-1.6)"


use rule larger as summarise_cause with:
    input:
        runs=inter("streaming/cause/runs.parquet"),
        gate="results/streaming_gate.parquet",
    output:
        table("streaming_cause", "Diagnose", "Whether a prune costs mass or direction"),
    pathvars:
        job="summarise_cause",
    localrule: True
    params:
        **publish("streaming.cause.summary.summarise_cause"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Loss after prunes with attention's output repaired"


use rule larger as summarise_parts with:
    input:
        parts=inter("streaming/cause/parts.parquet"),
    output:
        table("streaming_cause_layers", "Diagnose", "What a prune takes, by layer"),
    pathvars:
        job="summarise_parts",
    localrule: True
    params:
        **publish("streaming.cause.summary.summarise_parts"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Mass, norm and direction that prunes take, by layer"


use rule held as time_tokens with:
    input:
        **streaming_inputs(),
    output:
        runs=inter("streaming/diagnose/runs.parquet"),
    pathvars:
        job="time_tokens",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("streaming.diagnose.measure.time_tokens"),
        specs=timed_points(),
        methods=code_of(*eviction.modules(timed_points())),
        latency=conf("streaming", "latency"),
        corpus=conf("streaming", "long", "corpus"),
    message:
        "Time of every token of single streams (S-0)"


use rule job as summarise_latency with:
    input:
        runs=inter("streaming/diagnose/runs.parquet"),
    output:
        table("streaming_latency", "Diagnose", "Time per token under eviction"),
    pathvars:
        job="summarise_latency",
    localrule: True
    params:
        **publish("streaming.diagnose.summary.summarise_latency"),
        skip=conf("streaming", "latency", "skip"),
    message:
        "Time per token: steady state, percentiles, prune steps"


use rule drawn as plot_losses with:
    input:
        lazy=inter("streaming/quality/runs/lazy_prune.parquet"),
        reference=inter("streaming/quality/runs/streaming_llm.parquet"),
        spikes="results/streaming_spikes.parquet",
    output:
        figure("streaming_losses", "Diagnose", "Losses at prunes"),
    pathvars:
        job="plot_losses",
    localrule: True
    params:
        **plot("streaming.diagnose.figure.draw_losses"),
        latency=conf("streaming", "latency"),
    message:
        "Loss by token, prunes marked"


use rule drawn as plot_times with:
    input:
        runs=inter("streaming/diagnose/runs.parquet"),
    output:
        figure("streaming_times", "Diagnose", "Time per token, prunes marked"),
    pathvars:
        job="plot_times",
    localrule: True
    params:
        **plot("streaming.diagnose.figure.draw_times"),
        latency=conf("streaming", "latency"),
    message:
        "Time by token, prunes marked"


use rule larger as judge_matrix with:
    input:
        runs=quality_runs(),
        quality="results/streaming_quality.parquet",
        latency="results/streaming_latency.parquet",
    output:
        table("streaming_matrix", "Matrix", "What removes lazy pruning's loss"),
    pathvars:
        job="judge_matrix",
    localrule: True
    params:
        **publish("streaming.matrix.summary.judge_matrix"),
        bars=conf("streaming", "bars"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "What each change saves against lazy pruning, and the success rule (S-3)"


use rule job as list_programme with:
    input:
        quality="results/streaming_quality.parquet",
        latency="results/streaming_latency.parquet",
    output:
        table("streaming_programme", "Matrix", "The programme's eight points"),
    pathvars:
        job="list_programme",
    localrule: True
    params:
        **publish("streaming.matrix.summary.list_programme"),
        points=programme_points(),
        programme=conf("streaming", "programme"),
        bars=conf("streaming", "bars"),
    message:
        "Period x max_drop x refresh, and where max_drop could not bind (S-3)"


use rule job as keep_ledger with:
    input:
        matrix="results/streaming_matrix.parquet",
        latency="results/streaming_latency.parquet",
    output:
        table("streaming_ledger", "Matrix", "Directions, and those that are stopped"),
    pathvars:
        job="keep_ledger",
    localrule: True
    params:
        **publish("streaming.matrix.summary.keep_ledger"),
        noise=conf("streaming", "bars", "noise"),
    message:
        "Two changes in a row without a gain stop a direction (S-6)"


use rule drawn as plot_matrix with:
    input:
        matrix="results/streaming_matrix.parquet",
    output:
        figure("streaming_matrix", "Matrix", "What removes lazy pruning's loss"),
    pathvars:
        job="plot_matrix",
    localrule: True
    params:
        **plot("streaming.matrix.figure.draw"),
    message:
        "Loss saved against lazy pruning"


use rule larger as decide_streaming with:
    input:
        runs=quality_runs(),
        gate="results/streaming_gate.parquet",
        quality="results/streaming_quality.parquet",
        matrix="results/streaming_matrix.parquet",
        programme="results/streaming_programme.parquet",
        cause="results/streaming_cause.parquet",
        ledger="results/streaming_ledger.parquet",
    output:
        table("streaming_decisions", "Matrix", "Gates, goals and go/no-go rules"),
    pathvars:
        job="decide_streaming",
    localrule: True
    params:
        **publish("streaming.decisions.summary.decide_streaming"),
        bars=conf("streaming", "bars"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
        scale=conf("scale"),
    message:
        "The programme's rules, applied to its tables"


use rule drawn as plot_sweep with:
    input:
        quality="results/streaming_quality.parquet",
    output:
        figure("streaming_sweep", "Pareto", "Windows and periods of lazy pruning"),
    pathvars:
        job="plot_sweep",
    localrule: True
    params:
        **plot("streaming.matrix.figure.draw_sweep"),
    message:
        "Window sweep and lazy pruning (S-7)"


use rule drawn as plot_control with:
    input:
        spikes="results/streaming_spikes.parquet",
    output:
        figure("streaming_control", "Pareto", "Spikes before and after control"),
    pathvars:
        job="plot_control",
    localrule: True
    params:
        **plot("streaming.diagnose.figure.draw_control"),
    message:
        "Loss by steps since a prune, before and after control (S-7)"


use rule job as find_front with:
    input:
        quality="results/streaming_quality.parquet",
        latency="results/streaming_latency.parquet",
    output:
        table("streaming_pareto", "Pareto", "Time per token against perplexity"),
    pathvars:
        job="find_front",
    localrule: True
    params:
        **publish("streaming.pareto.summary.find_front"),
    message:
        "Points that nothing beats in both time and perplexity (S-7)"


use rule drawn as plot_pareto with:
    input:
        pareto="results/streaming_pareto.parquet",
    output:
        figure("streaming_pareto", "Pareto", "Time per token against perplexity"),
    pathvars:
        job="plot_pareto",
    localrule: True
    params:
        **plot("streaming.pareto.figure.draw"),
    message:
        "Time against perplexity"


use rule held as time_caches with:
    input:
        model=model_dir(
            conf("streaming", "ceiling", "model") or conf("streaming", "model")
        ),
    output:
        runs=inter("streaming/ceiling/runs.parquet"),
    pathvars:
        job="time_caches",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("streaming.ceiling.measure.time_caches"),
        settings=conf_of(
            ["streaming", "ceiling"],
            "peak",
            "tokens",
            "intervals",
            "warmup",
            "repeats",
        ),
        runtime=runtime_settings(),
    message:
        "What keeping the cache costs, by how it is kept (S-5)"


use rule job as summarise_caches with:
    input:
        runs=inter("streaming/ceiling/runs.parquet"),
    output:
        table("streaming_ceiling", "Ceiling", "What keeping the cache costs a token"),
    pathvars:
        job="summarise_caches",
    localrule: True
    params:
        **publish("streaming.ceiling.summary.summarise_caches"),
        noise=conf("streaming", "bars", "noise"),
    message:
        "Time and copied bytes a token, and what is a gain"
