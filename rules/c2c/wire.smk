# C2C: blobs, a local socket, and latency by bandwidth (C-M11).


use rule held as measure_c2c_wire with:
    input:
        **c2c_pair(conf("c2c", "seeds")[0]),
    output:
        blobs=inter("c2c/wire/blobs.parquet"),
        stages=inter("c2c/wire/stages.parquet"),
    pathvars:
        job="measure_c2c_wire",
    threads: 1
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
        timing=1,
    params:
        **study("c2c.wire.measure.measure_wire"),
        settings=conf("c2c", "wire"),
        runtime=runtime_settings(),
    message:
        "Blobs made, sent and read, and what text takes (C-M11)"


use rule job as summarise_c2c_wire with:
    input:
        blobs=inter("c2c/wire/blobs.parquet"),
        stages=inter("c2c/wire/stages.parquet"),
    output:
        table("c2c_m11", "M11", "Bytes and times of the wire format"),
    pathvars:
        job="summarise_c2c_wire",
    localrule: True
    params:
        **publish("c2c.wire.summary.summarise_wire"),
    message:
        "Medians of the wire's times, beside the memory's limit"


use rule job as model_c2c_latency with:
    input:
        blobs=inter("c2c/wire/blobs.parquet"),
        stages=inter("c2c/wire/stages.parquet"),
    output:
        latency=inter("c2c/wire/latency.parquet"),
    pathvars:
        job="model_c2c_latency",
    localrule: True
    params:
        **study("c2c.wire.summary.model_latency"),
    message:
        "Time of a message by bandwidth, text and KV"


use rule drawn as plot_c2c_wire with:
    input:
        latency=inter("c2c/wire/latency.parquet"),
    output:
        figure("c2c_m11", "M11", "Latency against bandwidth, text and KV"),
    pathvars:
        job="plot_c2c_wire",
    localrule: True
    params:
        **plot("c2c.wire.figure.draw"),
    message:
        "Latency against bandwidth"
