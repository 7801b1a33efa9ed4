# P1-1, P1-4: how close the engine comes to what the memory allows.


use rule timed as measure_roofline with:
    input:
        **gated_model(),
    output:
        decode=inter("p1/roofline/runs.parquet"),
        kernels=inter("p1/roofline/kernels.parquet"),
    pathvars:
        job="measure_roofline",
    params:
        **study("p1.roofline.measure.measure_decode"),
        settings=conf("p1", "roofline"),
    message:
        "Decoding against the read bandwidth, by batch size and by kernel"


use rule job as summarise_roofline with:
    input:
        decode=inter("p1/roofline/runs.parquet"),
    output:
        table("p1_roofline", "Engine", "Decoding against the memory's limit"),
    pathvars:
        job="summarise_roofline",
    localrule: True
    params:
        **publish("p1.roofline.summary.summarise_roofline"),
    message:
        "Medians and spread of decoding against the memory's limit"


use rule drawn as plot_roofline with:
    input:
        roofline="results/p1_roofline.parquet",
        kernels=inter("p1/roofline/kernels.parquet"),
    output:
        figure("p1_roofline", "Engine", "Decoding against the memory's limit"),
    pathvars:
        job="plot_roofline",
    localrule: True
    params:
        **plot("p1.roofline.figure.draw"),
    message:
        "Decoding speed against the memory's limit"
