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
    method="[a-z_]+",
    format="[a-z0-9]+",
    seed=r"\d+",
    shard=r"\d+",


include: "rules/p1.smk"
include: "rules/streaming.smk"
include: "rules/c2c.smk"
include: "rules/lowbit.smk"
include: "rules/bases.smk"
include: "rules/shared.smk"


for file in sorted((ROOT / "rules").glob("*/*.smk")):

    include: file


include: "rules/paper.smk"
include: "rules/workflow.smk"


rule all:
    default_target: True
    input:
        products(*PROGRAMMES.values(), "Paper", "Talk", "Workflow"),
    message:
        "Every product of every programme"


rule p1:
    input:
        products("P1"),
    message:
        "P1: KV-cache policies for RL rollouts"


rule streaming:
    input:
        products("Streaming"),
    message:
        "Streaming: rare pruning without the cliff"


rule c2c:
    input:
        products("C2C"),
    message:
        "C2C: quantised cache-to-cache communication"


rule lowbit:
    input:
        products("Low-bit"),
    message:
        "Low-bit: 4-bit weights, inference and training"


rule paper:
    input:
        products("Paper", "Talk"),
    message:
        "Decisions and readiness of the paper, diagram of the talk"


rule workflow_cost:
    input:
        products("Workflow"),
    message:
        "What the workflow itself costs"


rule p1_gates:
    input:
        inter("p1/gates.parquet"),
        products("Gates"),
    message:
        "P1-0: the hard gates"


for target, message, *sections in (
    ("p1_profile", "P1-1: a rollout's time", "Profile", "Engine", "Pipeline"),
    ("p1_prefix", "P1-2: what the prefix cache saves", "Prefix cache"),
    ("p1_lora", "P1-3: LoRA adapters, aligned and switched in place", "LoRA"),
    ("p1_rollout", "P1-4: the batched rollout: speed, consistency", "Rollout"),
    ("p1_policies", "P1-5, P1-6.1: cache policies and their cost", "Policies"),
    ("streaming_diagnose", "S-0, S-2: sinks, losses and times by token", "Diagnose"),
    ("streaming_matrix", "S-3, S-6: controlled eviction", "Matrix"),
    ("streaming_ceiling", "S-4, S-5: speed, what raises it, the cache", "Ceiling"),
    ("streaming_pareto", "S-7: time against perplexity", "Pareto"),
    ("c2c_m0", "C-M0: the channel against baselines and controls", "M0"),
    ("c2c_m1", "C-M1: schemes of quantisation", "M1"),
    ("c2c_m2", "C-M2: axes and scale statistics", "M2"),
    ("c2c_m3", "C-M3: length of the cache", "M3"),
    ("c2c_m4", "C-M4: accuracy against bytes", "M4"),
    ("c2c_m6", "C-M6: mixed precision by layer", "M6"),
    ("c2c_m8", "C-M8: selective transfer", "M8"),
    ("c2c_m11", "C-M11: wire format", "M11"),
    ("c2c_registry", "C-R: the runs of the channel", "Registry"),
    ("lowbit_kernels", "L-2: packed layers and kernels", "Kernels"),
    ("lowbit_debug", "L-4, L-5, L-7: debugging, conversation, guard", "Debug"),
    ("lowbit_train", "L-6: updates of packed weights", "Train"),
    ("lowbit_whoami", "L-6.6: identity fine-tuning", "WhoAmI"),
):

    rule:
        name:
            target
        input:
            products(*sections),
        message:
            message


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
