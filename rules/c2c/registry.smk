# C2C: the registry of the channel's runs (C-R).


use rule larger as collect_c2c_runs with:
    input:
        runs=channel_runs(),
    output:
        table("c2c_registry", "Registry", "Every run of the channel, by its key"),
    pathvars:
        job="collect_c2c_runs",
    localrule: True
    params:
        **publish("c2c.registry.summary.collect_runs"),
    message:
        "Every run: its point, what it was made with, what came of it (C-R)"
