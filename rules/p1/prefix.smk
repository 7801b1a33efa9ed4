# P1-2: the prefix cache, with and without (Sec 4.4).

SWEPT = {**conf("p1", "prefix")}
CHECKED = SWEPT.pop("identity_documents")


use rule timed as sweep_prefix with:
    output:
        sweep=inter("p1/prefix/shards/{shard}.parquet"),
    pathvars:
        job="sweep_prefix_{shard}",
    params:
        **study("p1.prefix.measure.sweep_prefix"),
        settings=SWEPT,
        shard=lambda w: int(w.shard),
    message:
        "Prefill with and without the prefix cache, shard {wildcards.shard} (P1-2.3)"


use rule job as join_prefix with:
    input:
        shards=expand(
            inter("p1/prefix/shards/{shard}.parquet"),
            shard=range(conf("p1", "prefix", "shards")),
        ),
    output:
        sweep=inter("p1/prefix/runs.parquet"),
    pathvars:
        job="join_prefix",
    localrule: True
    params:
        **study("p1.prefix.summary.join_sweep"),
        documents=conf("p1", "prefix", "documents"),
    message:
        "All shards of the prefix sweep in one table, every document once"


use rule held as check_prefix with:
    input:
        **gated_prompts(),
    output:
        identity=inter("p1/prefix/identity.parquet"),
    pathvars:
        job="check_prefix",
    params:
        **study("p1.prefix.measure.check_identity"),
        documents=CHECKED,
        prompts=conf("p1", "prefix", "prompts"),
        prefix_fractions=conf("p1", "prefix", "prefix_fractions"),
        budget_mb=conf("p1", "prefix", "budget_mb"),
    message:
        "First tokens with and without the prefix cache in float32 (P1-2.3)"


use rule job as summarise_prefix with:
    input:
        sweep=inter("p1/prefix/runs.parquet"),
        identity=inter("p1/prefix/identity.parquet"),
        model=model_dir(),
    output:
        table("p1_prefix_savings", "Prefix cache", "What reused prefixes save"),
    pathvars:
        job="summarise_prefix",
    localrule: True
    params:
        **publish("p1.prefix.summary.prefix_savings"),
        seed=conf("seed"),
        tolerance=conf("p1", "prefix", "tolerance"),
    message:
        "Savings with intervals, beside what the operation count predicts"


use rule job as summarise_prefix_losses with:
    input:
        sweep=inter("p1/prefix/runs.parquet"),
        model=model_dir(),
    output:
        table(
            "p1_prefix_losses",
            "Prefix cache",
            "Where the time that reuse does not save goes",
        ),
    pathvars:
        job="summarise_prefix_losses",
    localrule: True
    params:
        **publish("p1.prefix.summary.prefix_losses"),
        seed=conf("seed"),
    message:
        "What prefix reuse saves, and what of it is lost again"


use rule drawn as plot_sec44 with:
    input:
        savings="results/p1_prefix_savings.parquet",
        losses="results/p1_prefix_losses.parquet",
    output:
        figure("p1_sec44", "Prefix cache", "What reused prefixes save"),
    pathvars:
        job="plot_sec44",
    localrule: True
    params:
        **plot("p1.prefix.figure.draw"),
        goal=conf("p1", "decisions", "min_prefix_savings"),
    message:
        "Sec 4.4: prefill saved by prefix reuse"
