# Streaming: how fast streams run on the fast path, and what each part of it saves (S-0, S-4).


use rule held as time_streams with:
    input:
        model=model_dir(
            conf("streaming", "speed", "model") or conf("streaming", "model")
        ),
    output:
        runs=inter("streaming/speed/runs.parquet"),
    pathvars:
        job="time_streams",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("streaming.speed.measure.time_streams"),
        specs=speed_points(),
        methods=code_of(*eviction.modules(speed_points())),
        settings=conf_of(["streaming", "speed"], "tokens", "warmup", "repeats"),
        runtime=runtime_settings(),
    message:
        "Time of every token on the fast path, beside others and with parts switched off (S-4)"


use rule job as summarise_speed with:
    input:
        runs=inter("streaming/speed/runs.parquet"),
    output:
        table("streaming_speed", "Ceiling", "Speed of streams, and what raises it"),
    pathvars:
        job="summarise_speed",
    localrule: True
    params:
        **publish("streaming.speed.summary.summarise_speed"),
        skip=conf("streaming", "speed", "skip"),
        noise=conf("streaming", "bars", "noise"),
    message:
        "Steady time per token, share of the read bandwidth, gains of each switch"


use rule drawn as plot_speed with:
    input:
        speed="results/streaming_speed.parquet",
    output:
        figure("streaming_speed", "Ceiling", "Speed of streams, and what raises it"),
    pathvars:
        job="plot_speed",
    localrule: True
    params:
        **plot("streaming.speed.figure.draw"),
    message:
        "Time per token by method and path"
