# The checked configuration, and what can be checked before any job starts.
SETTINGS = load_settings(config)
before_planning(SETTINGS)
CODE = code_of_scripts()
ENVIRONMENT = str(ROOT / "workflow" / "envs" / "ember.yaml")
P1_PRODUCTS = [
    *figure("p1_fig2"),
    *figure("p1_pipeline_splits"),
    *figure("p1_gantt"),
    *figure("p1_sec44"),
    *figure("p1_fig3"),
    *table("p1_architectures"),
    *figure("p1_lora_latency"),
    *figure("p1_lora_layers"),
    *figure("p1_lora_blocks"),
    *table("p1_prefill_share"),
    *table("p1_engine_speed"),
    *figure("p1_roofline"),
    *table("p1_roofline"),
    *table("p1_pipeline"),
    *figure("p1_frameworks"),
    *table("p1_frameworks"),
    *figure("p1_loading"),
    *table("p1_loading"),
    *table("p1_memory_budget"),
    *table("p1_prefix_savings"),
    *table("p1_policies"),
    *table("p1_lora_latency"),
    *table("p1_lora_alignment"),
    *figure("p1_rollout"),
    *table("p1_rollout_speed"),
    *table("p1_rollout_consistency"),
]
PAPER_PRODUCTS = [*table("decisions"), *table("readiness")]
WORKFLOW_PRODUCTS = [*table("workflow_jobs"), *table("workflow_cost")]


wildcard_constraints:
    corpus="|".join(SETTINGS["corpora"]),
    model="|".join(SETTINGS["models"]),
    shard=r"\d+",


onstart:
    before_work(SETTINGS)
