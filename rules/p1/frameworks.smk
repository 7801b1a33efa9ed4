# P1-1.3 to P1-1.5: other frameworks beside this engine, loading times, memory.


use rule timed as compare_frameworks with:
    input:
        **gated_prompts(),
        gguf=inter("p1/gguf"),
    output:
        runs=inter("p1/frameworks/runs.parquet"),
    pathvars:
        job="compare_frameworks",
    resources:
        mem_mb=grow(conf("p1", "frameworks", "mem_mb")),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("p1.frameworks.measure.compare_frameworks"),
        settings=conf_of(
            ["p1", "frameworks"],
            *("peers", "points", "repeats", "warmup", "timeout_s"),
        ),
        installed=peer_environments(conf("p1", "frameworks", "peers")),
    message:
        "This engine and other frameworks in turns, each in its own process (P1-1.3)"


use rule job as summarise_frameworks with:
    input:
        runs=inter("p1/frameworks/runs.parquet"),
    output:
        table("p1_frameworks", "Profile", "Speed beside other frameworks"),
    pathvars:
        job="summarise_frameworks",
    localrule: True
    params:
        **publish("p1.frameworks.summary.summarise_frameworks"),
    message:
        "Mean, spread, ratios and caveats of every framework"


use rule drawn as plot_frameworks with:
    input:
        frameworks="results/p1_frameworks.parquet",
    output:
        figure("p1_frameworks", "Profile", "Speed beside other frameworks"),
    pathvars:
        job="plot_frameworks",
    localrule: True
    params:
        **plot("p1.frameworks.figure.draw"),
    message:
        "Decode speed of every framework beside the read bandwidth"


use rule timed as time_loading with:
    input:
        **gated_prompts(),
        gguf=inter("p1/gguf"),
    output:
        loading=inter("p1/loading/runs.parquet"),
        first_token=inter("p1/loading/first_token.parquet"),
    pathvars:
        job="time_loading",
    params:
        **study("p1.loading.measure.measure_loading"),
        settings=conf("p1", "loading"),
    message:
        "Loading by safetensors, GGUF and Transformers, cold and warm; the first token (P1-1.4)"


use rule job as summarise_loading with:
    input:
        runs=inter("p1/loading/runs.parquet"),
    output:
        table("p1_loading", "Profile", "Loading a model"),
    pathvars:
        job="summarise_loading",
    localrule: True
    params:
        **publish("p1.loading.summary.summarise_loading"),
    message:
        "Median load of every loader beside reading the bytes alone"


use rule drawn as plot_loading with:
    input:
        loading="results/p1_loading.parquet",
        first_token=inter("p1/loading/first_token.parquet"),
    output:
        figure("p1_loading", "Profile", "Loading a model"),
    pathvars:
        job="plot_loading",
    localrule: True
    params:
        **plot("p1.loading.figure.draw"),
    message:
        "Loading times, and a process's way to its first token"


use rule held as measure_memory with:
    input:
        **gated_model(),
    output:
        table("p1_memory_budget", "Profile", "Memory of a model by part"),
    pathvars:
        job="measure_memory",
    params:
        **publish("p1.memory.measure.memory_budget"),
        settings=conf("p1", "memory"),
    message:
        "Weights, KV, activations, gradients and optimizer: predicted and measured (P1-1.5)"
