# Ember: from hard gates to the paper's figures. Targets and includes, nothing else.
include: "rules/common.smk"


configfile: str(ROOT / "config" / "config.yaml")
configfile: scale_file(config)


include: "rules/settings.smk"
include: "rules/models.smk"
include: "rules/p1_gates.smk"
include: "rules/p1_profile.smk"
include: "rules/p1_prefix.smk"
include: "rules/p1_policies.smk"
include: "rules/paper.smk"


rule all:
    default_target: True
    message:
        "Every product of every programme"
    input:
        P1_PRODUCTS,
        PAPER_PRODUCTS,


rule p1:
    message:
        "P1: KV-cache policies for RL rollouts"
    input:
        P1_PRODUCTS,


rule paper:
    message:
        "Decisions and readiness of the paper"
    input:
        PAPER_PRODUCTS,


rule p1_gates:
    message:
        "P1-0: the hard gates"
    input:
        inter("p1/gates.parquet"),


rule p1_profile:
    message:
        "P1-1: where a rollout's time goes"
    input:
        figure("p1_fig2"),
        table("p1_prefill_share"),
        table("p1_engine_speed"),


rule p1_prefix:
    message:
        "P1-2: what the prefix cache saves"
    input:
        figure("p1_sec44"),
        table("p1_prefix_savings"),


rule p1_policies:
    message:
        "P1-5, P1-6.1: cache policies and their modelled cumulative cost"
    input:
        figure("p1_fig3"),
        table("p1_policies"),


rule p1_fig2:
    message:
        "Figure 2"
    input:
        figure("p1_fig2"),


rule p1_fig3:
    message:
        "Figure 3"
    input:
        figure("p1_fig3"),
