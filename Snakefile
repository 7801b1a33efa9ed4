# Ember: from hard gates to the paper's figures. Targets and includes, nothing else.
include: "rules/common.smk"


configfile: str(ROOT / "config" / "config.yaml")
configfile: scale_file(config)


include: "rules/settings.smk"
include: "rules/models.smk"
include: "rules/p1_gates.smk"
include: "rules/p1_profile.smk"
include: "rules/p1_engine.smk"
include: "rules/p1_pipeline.smk"
include: "rules/p1_peers.smk"
include: "rules/p1_prefix.smk"
include: "rules/p1_policies.smk"
include: "rules/p1_lora.smk"
include: "rules/p1_rollout.smk"
include: "rules/paper.smk"
include: "rules/workflow.smk"


rule all:
    default_target: True
    input:
        P1_PRODUCTS,
        PAPER_PRODUCTS,
        WORKFLOW_PRODUCTS,
    message:
        "Every product of every programme"


rule p1:
    input:
        P1_PRODUCTS,
    message:
        "P1: KV-cache policies for RL rollouts"


rule paper:
    input:
        PAPER_PRODUCTS,
    message:
        "Decisions and readiness of the paper"


rule workflow_cost:
    input:
        WORKFLOW_PRODUCTS,
    message:
        "What the workflow itself costs"


rule p1_gates:
    input:
        inter("p1/gates.parquet"),
        table("p1_architectures"),
    message:
        "P1-0: the hard gates"


rule p1_profile:
    input:
        figure("p1_fig2"),
        table("p1_prefill_share"),
        table("p1_engine_speed"),
        figure("p1_roofline"),
        table("p1_roofline"),
        figure("p1_pipeline_splits"),
        figure("p1_gantt"),
        table("p1_pipeline"),
        figure("p1_frameworks"),
        table("p1_frameworks"),
        figure("p1_loading"),
        table("p1_loading"),
        table("p1_memory_budget"),
    message:
        "P1-1: where a rollout's time goes, on one device and on two"


rule p1_prefix:
    input:
        figure("p1_sec44"),
        table("p1_prefix_savings"),
    message:
        "P1-2: what the prefix cache saves"


rule p1_policies:
    input:
        figure("p1_fig3"),
        table("p1_policies"),
    message:
        "P1-5, P1-6.1: cache policies and their modelled cumulative cost"


rule p1_lora:
    input:
        figure("p1_lora_latency"),
        figure("p1_lora_layers"),
        figure("p1_lora_blocks"),
        table("p1_lora_latency"),
        table("p1_lora_alignment"),
    message:
        "P1-3: LoRA adapters, aligned with PEFT and switched in place"


rule p1_rollout:
    input:
        figure("p1_rollout"),
        table("p1_rollout_speed"),
        table("p1_rollout_consistency"),
    message:
        "P1-4: the batched rollout, its speed and its consistency"


rule p1_fig2:
    input:
        figure("p1_fig2"),
    message:
        "Figure 2"


rule p1_fig3:
    input:
        figure("p1_fig3"),
    message:
        "Figure 3"
