# Streaming in other frameworks, on the same model, tokens and peak (S-1.7).


use rule held as stream_peers with:
    input:
        model=model_dir(conf("streaming", "model")),
        long=streaming_inputs()["long"],
    output:
        streams=inter("streaming/peers/streams.parquet"),
        times=inter("streaming/peers/times.parquet"),
    pathvars:
        job="stream_peers",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("streaming.peers.measure.stream_peers"),
        methods=code_of(
            *eviction.modules(
                {"name": name}
                for name in ("streaming_llm", "lazy_prune", "window", "tova")
            )
        ),
        evaluated=conf("streaming", "long"),
        settings=conf_of(
            ["streaming", "peers"],
            "frameworks",
            "budget",
            "n_sink",
            "streams",
            "tokens",
            "timeout_s",
            "warmup",
            "repeats",
        ),
        runtime=runtime_settings(),
        installed=peer_environments(conf("streaming", "peers", "frameworks")),
    message:
        "Other frameworks and this one on the same streams (S-1.7)"


use rule job as compare_peers with:
    input:
        streams=inter("streaming/peers/streams.parquet"),
        times=inter("streaming/peers/times.parquet"),
    output:
        table("streaming_peers", "Matrix", "Streaming in other frameworks"),
    pathvars:
        job="compare_peers",
    localrule: True
    params:
        **publish("streaming.peers.summary.compare_peers"),
        skip=conf("streaming", "peers", "skip"),
        resamples=conf("streaming", "resamples"),
        seed=conf("seed"),
    message:
        "Loss above R = 1 and time per token of other frameworks"


use rule drawn as plot_peers with:
    input:
        peers="results/streaming_peers.parquet",
    output:
        figure("streaming_peers", "Matrix", "Streaming in other frameworks"),
    pathvars:
        job="plot_peers",
    localrule: True
    params:
        **plot("streaming.peers.figure.draw"),
    message:
        "Loss against time per token of other frameworks"
