# Ember: from hard gates to the paper's figures. Targets and includes, nothing else.
include: "rules/common.smk"


configfile: str(ROOT / "config" / "config.yaml")
configfile: scale_file(config)


SETTINGS = load_settings(config)
before_planning(SETTINGS)


onstart:
    before_work(SETTINGS)


wildcard_constraints:
    corpus="|".join(SETTINGS["corpora"]),
    model="|".join(SETTINGS["models"]),
    shard=r"\d+",


include: "rules/bases.smk"
include: "rules/shared.smk"
include: "rules/p1.smk"
include: "rules/paper.smk"
include: "rules/workflow.smk"


rule all:
    default_target: True
    input:
        products("P1", "Paper", "Workflow"),
    message:
        "Every product of every programme"


rule p1:
    input:
        products("P1"),
    message:
        "P1: KV-cache policies for RL rollouts"


rule paper:
    input:
        products("Paper"),
    message:
        "Decisions and readiness of the paper"


rule workflow_cost:
    input:
        products("Workflow"),
    message:
        "What the workflow itself costs"


rule p1_gates:
    input:
        inter("p1/gates.parquet"),
        products("P1", topics=["Gates"]),
    message:
        "P1-0: the hard gates"


rule p1_profile:
    input:
        products("P1", topics=["Profile", "Engine", "Pipeline"]),
    message:
        "P1-1: where a rollout's time goes, on one device and on two"


rule p1_prefix:
    input:
        products("P1", topics=["Prefix cache"]),
    message:
        "P1-2: what the prefix cache saves"


rule p1_lora:
    input:
        products("P1", topics=["LoRA"]),
    message:
        "P1-3: LoRA adapters, aligned with PEFT and switched in place"


rule p1_rollout:
    input:
        products("P1", topics=["Rollout"]),
    message:
        "P1-4: the batched rollout, its speed and its consistency"


rule p1_policies:
    input:
        products("P1", topics=["Policies"]),
    message:
        "P1-5, P1-6.1: cache policies and their modelled cumulative cost"


rule p1_fig2:
    input:
        multiext("results/p1_fig2", ".png", ".pdf", ".caption.md"),
    message:
        "Figure 2"


rule p1_fig3:
    input:
        multiext("results/p1_fig3", ".png", ".pdf", ".caption.md"),
    message:
        "Figure 3"
