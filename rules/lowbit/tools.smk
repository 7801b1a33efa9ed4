# Low-bit: debugging of packed layers, conversations, and the memory guard (L-4, L-5, L-7).


use rule held as time_turns with:
    input:
        **lowbit_model(),
        corpus=inter(f"corpora/{conf('p1', 'corpus')}.parquet"),
    output:
        runs=inter("lowbit/conversation/runs.parquet"),
    pathvars:
        job="time_turns",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("lowbit.conversation.measure.time_turns"),
        settings=conf("lowbit", "conversation"),
        runtime=runtime_settings(),
    message:
        "Turns of a conversation whose KV stays, beside a full replay (L-5)"


use rule job as summarise_turns with:
    input:
        runs=inter("lowbit/conversation/runs.parquet"),
    output:
        table("lowbit_conversation", "Debug", "Turns whose KV stays"),
    pathvars:
        job="summarise_turns",
    localrule: True
    params:
        **publish("lowbit.conversation.summary.summarise_turns"),
    message:
        "Time and length by turn"


use rule drawn as plot_turns with:
    input:
        turns="results/lowbit_conversation.parquet",
    output:
        figure("lowbit_conversation", "Debug", "Turns whose KV stays"),
    pathvars:
        job="plot_turns",
    localrule: True
    params:
        **plot("lowbit.conversation.figure.draw"),
    message:
        "Time and length by turn"


use rule held as find_faults with:
    input:
        **lowbit_model(),
        corpus=inter(f"corpora/{conf('p1', 'corpus')}.parquet"),
    output:
        table("lowbit_debug", "Debug", "Planted faults, and what finds them"),
    pathvars:
        job="find_faults",
    threads: 1
    params:
        **publish("lowbit.debug.measure.find_faults"),
        settings=conf("lowbit", "debug"),
        runtime=runtime_settings(),
    message:
        "Scales decoded as integers, and what each tool says of them (L-4)"


use rule held as compare_first_token with:
    input:
        **lowbit_model(),
        corpus=inter(f"corpora/{conf('p1', 'corpus')}.parquet"),
    output:
        table("lowbit_first_token", "Debug", "The first token by every path"),
    pathvars:
        job="compare_first_token",
    threads: 1
    params:
        **publish("lowbit.debug.measure.compare_paths"),
        settings=conf_of(["lowbit", "debug"], "tokens", "max_kl"),
        runtime=runtime_settings(),
    message:
        "The first token: dequantised, training and packed layers (L-4.3)"


use rule job as measure_overshoot with:
    output:
        table("lowbit_guard", "Debug", "Overshoot of the memory guard"),
    pathvars:
        job="measure_overshoot",
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
        timing=1,
    params:
        **publish("lowbit.guard.measure.measure_overshoot"),
        settings=conf("lowbit", "guard"),
    message:
        "How far memory overshoots the guard's limit, by its polling interval (L-7)"
