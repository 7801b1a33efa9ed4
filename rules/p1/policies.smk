# P1-5 and P1-6.1: cache policies, simulated, and what they cost by the measured tables.


use rule timed as sweep_restart with:
    output:
        sweep=inter("p1/restart/runs.parquet"),
        store=inter("p1/restart/store.parquet"),
    pathvars:
        job="sweep_restart",
    params:
        **study("p1.restart.measure.sweep_restart"),
        settings=conf("p1", "restart"),
        points=conf("p1", "rounds", "points"),
        rounds=conf("p1", "rounds", "rounds"),
        policies=conf("p1", "policies"),
    message:
        "Prefills by every plan of the policies, through the engine"


use rule job as simulate_policies with:
    input:
        model=model_dir(),
    output:
        rounds=inter("p1/policies/rounds.parquet"),
    pathvars:
        job="simulate_policies",
    localrule: True
    params:
        **study("p1.policies.measure.simulate_policies"),
        policies=conf("p1", "policies"),
        rounds=conf_of(
            ["p1", "rounds"], "rounds", "prompts", "candidates", "recurrence", "points"
        ),
    message:
        "What each policy recomputes and reuses, round by round (P1-5.3)"


use rule job as model_cost with:
    input:
        rollout=inter("p1/rollout/runs.parquet"),
        restart=inter("p1/restart/runs.parquet"),
        store=inter("p1/restart/store.parquet"),
        latency=inter("p1/lora_latency/runs.parquet"),
        learner=inter("p1/learner/runs.parquet"),
        policy_rounds=inter("p1/policies/rounds.parquet"),
    output:
        cost=inter("p1/policies/cost.parquet"),
        memory=inter("p1/policies/memory.parquet"),
    pathvars:
        job="model_cost",
    localrule: True
    resources:
        mem_mb=grow(1000),
        runtime=minutes(10),
    params:
        **study("p1.policies.cost.model_cost"),
        rounds=conf("p1", "rounds"),
        seed=conf("seed"),
    message:
        "Cumulative cost of every policy, from the measured tables alone (P1-6.1)"


use rule job as summarise_policies with:
    input:
        rounds=inter("p1/policies/rounds.parquet"),
        cost=inter("p1/policies/cost.parquet"),
        memory=inter("p1/policies/memory.parquet"),
    output:
        table("p1_policies", "Policies", "Cache policies and their cost"),
    pathvars:
        job="summarise_policies",
    localrule: True
    params:
        **publish("p1.policies.summary.summarise_policies"),
    message:
        "Policies side by side: recompute ratio, cost and savings"


use rule job as model_batch1 with:
    input:
        profile=inter("p1/profile/runs.parquet"),
        restart=inter("p1/restart/runs.parquet"),
        latency=inter("p1/lora_latency/runs.parquet"),
        policy_rounds=inter("p1/policies/rounds.parquet"),
    output:
        table("p1_policies_batch1", "Policies", "Cache policies by rollouts at batch 1"),
    pathvars:
        job="model_batch1",
    localrule: True
    params:
        **publish("p1.policies.cost.model_batch1"),
        rounds=conf("p1", "rounds"),
        seed=conf("seed"),
    message:
        "The seed programme's accounting: every rollout decodes alone"


use rule drawn as plot_fig3 with:
    input:
        cost=inter("p1/policies/cost.parquet"),
        memory=inter("p1/policies/memory.parquet"),
    output:
        figure("p1_fig3", "Policies", "Cumulative cost of cache policies"),
    pathvars:
        job="plot_fig3",
    localrule: True
    params:
        **plot("p1.policies.figure.draw"),
        rounds=conf("p1", "rounds"),
    message:
        "Figure 3: cumulative cost of the cache policies"
