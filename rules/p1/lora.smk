# P1-3: adapters, their alignment with PEFT, and the latency of switching them.


use rule held as make_adapters with:
    input:
        **gated_prompts(),
    output:
        adapters=directory(inter("p1/lora_adapters")),
    pathvars:
        job="make_adapters",
    params:
        **study("p1.lora_adapters.make.make_adapters"),
        settings=conf_of(
            ["p1", "lora"],
            *(
                "rank",
                "alpha",
                "b_std",
                "train_steps",
                "train_tokens",
                "learning_rate",
            ),
        ),
    message:
        "Adapters in PEFT's format: by PEFT, drawn, trained (P1-3.4)"


use rule held as align_lora with:
    input:
        **gated_prompts(),
        adapters=inter("p1/lora_adapters"),
    output:
        cases=inter("p1/lora_alignment/cases.parquet"),
        weights=inter("p1/lora_alignment/weights.parquet"),
        layers=inter("p1/lora_alignment/layers.parquet"),
        freeze=inter("p1/lora_alignment/freeze.parquet"),
        blocks=inter("p1/lora_alignment/blocks.parquet"),
        spot=inter("p1/lora_alignment/spot.parquet"),
    pathvars:
        job="align_lora",
    params:
        **study("p1.lora_alignment.measure.align"),
        settings=conf_of(
            ["p1", "lora"],
            *("dtypes", "prompts", "tokens", "profiled"),
            *("layer_fractions", "freeze_fractions", "thresholds"),
        ),
    message:
        "Adapters against PEFT: logits, weights, layers, blocks, operators (P1-3.4 to P1-3.7)"


use rule timed as time_lora with:
    input:
        **gated_model(),
    output:
        latency=inter("p1/lora_latency/runs.parquet"),
        exact=inter("p1/lora_latency/exact.parquet"),
    pathvars:
        job="time_lora",
    params:
        **study("p1.lora_latency.measure.time_adapters"),
        settings=conf_of(
            ["p1", "lora"],
            *("rank", "alpha", "b_std", "keeps", "warmup", "repeats", "swaps"),
        ),
    message:
        "Adapters applied, replaced and rolled back, beside PEFT (P1-3.3)"


use rule timed as time_first_lora with:
    input:
        **gated_model(),
    output:
        first=inter("p1/lora_latency/first.parquet"),
    pathvars:
        job="time_first_lora",
    params:
        **study("p1.lora_latency.measure.time_first"),
        settings=conf_of(["p1", "lora"], "rank", "alpha", "b_std", "processes"),
    message:
        "The first adapter of fresh processes, Triton's disk cache cold and warm (P1-3.3)"


use rule job as summarise_lora_alignment with:
    input:
        cases=inter("p1/lora_alignment/cases.parquet"),
    output:
        table("p1_lora_alignment", "LoRA", "Adapters against PEFT"),
    pathvars:
        job="summarise_lora_alignment",
    localrule: True
    params:
        **publish("p1.lora_alignment.summary.summarise_alignment"),
        resamples=conf("p1", "rounds", "bootstrap"),
        seed=conf("seed"),
    message:
        "The worst difference to PEFT of each adapter and number format"


use rule job as summarise_lora_latency with:
    input:
        latency=inter("p1/lora_latency/runs.parquet"),
        first=inter("p1/lora_latency/first.parquet"),
    output:
        table("p1_lora_latency", "LoRA", "Time to switch adapters"),
    pathvars:
        job="summarise_lora_latency",
    localrule: True
    params:
        **publish("p1.lora_latency.summary.summarise_latency"),
    message:
        "Switching adapters, against the memory's limit and PEFT"


use rule drawn as plot_lora_layers with:
    input:
        layers=inter("p1/lora_alignment/layers.parquet"),
        freeze=inter("p1/lora_alignment/freeze.parquet"),
    output:
        figure("p1_lora_layers", "LoRA", "Differences to PEFT by layer"),
    pathvars:
        job="plot_lora_layers",
    localrule: True
    params:
        **plot("p1.lora_alignment.figure.draw_layers"),
    message:
        "Differences to PEFT by layer (P1-3.6)"


use rule drawn as plot_lora_blocks with:
    input:
        blocks=inter("p1/lora_alignment/blocks.parquet"),
        spot=inter("p1/lora_alignment/spot.parquet"),
    output:
        figure("p1_lora_blocks", "LoRA", "Differences to PEFT by block"),
    pathvars:
        job="plot_lora_blocks",
    localrule: True
    params:
        **plot("p1.lora_alignment.figure.draw_blocks"),
    message:
        "Differences to PEFT by block, and where they enter (P1-3.7)"


use rule drawn as plot_lora_latency with:
    input:
        latency="results/p1_lora_latency.parquet",
        first=inter("p1/lora_latency/first.parquet"),
        exact=inter("p1/lora_latency/exact.parquet"),
    output:
        figure("p1_lora_latency", "LoRA", "Time to switch adapters"),
    pathvars:
        job="plot_lora_latency",
    localrule: True
    params:
        **plot("p1.lora_latency.figure.draw"),
    message:
        "Switching adapters (P1-3.3)"
