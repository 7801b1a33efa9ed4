# Verdicts computed from tables, what the paper still lacks, and the talk's diagram.


use rule job as decide with:
    input:
        gates=inter("p1/gates.parquet"),
        share="results/p1_prefill_share.parquet",
        savings="results/p1_prefix_savings.parquet",
        speed="results/p1_engine_speed.parquet",
        alignment="results/p1_lora_alignment.parquet",
        weights=inter("p1/lora_alignment/weights.parquet"),
        latency="results/p1_lora_latency.parquet",
        exact=inter("p1/lora_latency/exact.parquet"),
        streaming="results/streaming_decisions.parquet",
    output:
        table("decisions", "Paper", "Gates and go/no-go rules"),
    pathvars:
        job="decide",
    localrule: True
    params:
        **publish("paper.decisions.summary.decide"),
        thresholds=conf("p1", "decisions"),
        operating=conf("p1", "rollout", "points")[0],
        scale=conf("scale"),
    message:
        "Every go/no-go rule, applied to the tables it names"


use rule drawn as plot_architecture with:
    output:
        figure("architecture", "Talk", "The library's layers and packages"),
    pathvars:
        job="plot_architecture",
    localrule: True
    params:
        **plot("paper.architecture.figure.draw"),
        layers=read_layers(ROOT / "pyproject.toml"),
    message:
        "The architecture, drawn from its import contract (P1-11.3)"


use rule job as assess_readiness with:
    input:
        products("P1", "Talk"),
        decisions="results/decisions.parquet",
    output:
        table("readiness", "Paper", "What the paper still lacks"),
    pathvars:
        job="assess_readiness",
    localrule: True
    params:
        **publish("paper.readiness.summary.assess"),
        scale=conf("scale"),
    message:
        "For every item of the paper: ready, or what is missing (P1-11.1)"
