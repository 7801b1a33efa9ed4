# Low-bit: packed layers and kernels (L-1, L-2).


use rule held as quantise_model with:
    input:
        model=model_dir(conf("lowbit", "quantise", "model") or conf("lowbit", "model")),
    output:
        errors=inter("lowbit/quantise/{format}.parquet"),
        packed=directory(inter("lowbit/quantise/{format}")),
    pathvars:
        job="quantise_model_{format}",
    threads: 1
    params:
        **study("lowbit.quantise.make.quantise_model"),
        format=lambda w: w.format,
        runtime=runtime_settings(),
    message:
        "The model's weights in {wildcards.format}, and their errors by layer"


use rule job as join_formats with:
    input:
        errors=expand(
            inter("lowbit/quantise/{format}.parquet"),
            format=conf("lowbit", "quantise", "formats"),
        ),
    output:
        table("lowbit_quantise", "Kernels", "Errors of 4-bit weights by layer"),
    pathvars:
        job="join_formats",
    localrule: True
    params:
        **publish("lowbit.quantise.summary.join_formats"),
    message:
        "Errors of 4-bit weights by layer and format"


use rule held as time_products with:
    input:
        model=model_dir(conf("lowbit", "kernels", "model") or conf("lowbit", "model")),
    output:
        inter("lowbit/kernels/products.parquet"),
    pathvars:
        job="time_products",
    resources:
        mem_mb=grow(conf("lowbit", "kernels", "mem_mb")),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("lowbit.kernels.products.time_products"),
        settings=conf_of(
            ["lowbit", "kernels"],
            "formats",
            "rows",
            "warmup",
            "repeats",
        ),
        runtime=runtime_settings(),
    message:
        "Products with packed weights beside dense ones (L-2)"


use rule held as time_decoding with:
    input:
        model=model_dir(conf("lowbit", "kernels", "model") or conf("lowbit", "model")),
    output:
        inter("lowbit/kernels/decoding.parquet"),
    pathvars:
        job="time_decoding",
    resources:
        mem_mb=grow(conf("lowbit", "kernels", "mem_mb")),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("lowbit.kernels.decoding.time_decoding"),
        settings=conf_of(
            ["lowbit", "kernels"],
            "decoded",
            "candidates",
            "prompt_tokens",
            "new_tokens",
            "warmup",
            "repeats",
        ),
        peers={
            name: conf("p1", "frameworks", "peers", name)
            for name in conf("lowbit", "kernels", "peers")
        },
        runtime=runtime_settings(),
    message:
        "Decoding with packed weights beside dense ones and peers, in turns (L-2)"


use rule job as summarise_kernels with:
    input:
        products=inter("lowbit/kernels/products.parquet"),
    output:
        table("lowbit_kernels", "Kernels", "Products with packed weights"),
    pathvars:
        job="summarise_kernels",
    localrule: True
    params:
        **publish("lowbit.kernels.summary.summarise_kernels"),
    message:
        "Time, bandwidth and errors of products with packed weights"


use rule job as summarise_decoding with:
    input:
        decoding=inter("lowbit/kernels/decoding.parquet"),
    output:
        table("lowbit_decode", "Kernels", "Decoding with packed weights"),
    pathvars:
        job="summarise_decoding",
    localrule: True
    params:
        **publish("lowbit.kernels.summary.summarise_decoding"),
    message:
        "Decoding with packed weights beside dense ones"


use rule drawn as plot_kernels with:
    input:
        kernels="results/lowbit_kernels.parquet",
        decoding="results/lowbit_decode.parquet",
    output:
        figure("lowbit_kernels", "Kernels", "Packed weights against the roofline"),
    pathvars:
        job="plot_kernels",
    localrule: True
    params:
        **plot("lowbit.kernels.figure.draw"),
    message:
        "Packed weights against the roofline"
