# P1-0: nothing is measured before these hold. One row each.


use rule job as gate_environment with:
    output:
        gate=inter("p1/gates/environment.parquet"),
    pathvars:
        job="gate_environment",
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
        gpu=gpus(),
    params:
        **study("p1.gates.environment.check_environment"),
        runtime=runtime_settings(),
    message:
        "Gate: the environment is recorded and has the device it needs"


use rule job as gate_outputs with:
    output:
        gate=inter("p1/gates/outputs.parquet"),
    pathvars:
        job="gate_outputs",
    params:
        **study("p1.gates.outputs.check_outputs"),
    message:
        "Gate: results can be written, whole or not at all"


use rule job as gate_snapshot with:
    input:
        model=model_dir(),
    output:
        gate=inter("p1/gates/snapshot.parquet"),
        snapshot=inter("p1/model_snapshot.parquet"),
    pathvars:
        job="gate_snapshot",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
    params:
        **study("p1.gates.snapshot.check_snapshot"),
        name=conf("p1", "model"),
        source=conf("models", conf("p1", "model")),
    message:
        "Gate: the main model's snapshot is fixed and hashed"


use rule job as gate_gguf with:
    input:
        model=model_dir(),
    output:
        gate=inter("p1/gates/gguf.parquet"),
        gguf=directory(inter("p1/gguf")),
    pathvars:
        job="gate_gguf",
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
    params:
        **study("p1.gates.gguf.check_gguf_export"),
    message:
        "Gate: the same weights as GGUF, hashed (what llama.cpp will read)"


use rule held as gate_smoke with:
    input:
        model=model_dir(),
        environment=inter("p1/gates/environment.parquet"),
    output:
        gate=inter("p1/gates/smoke.parquet"),
    pathvars:
        job="gate_smoke",
    params:
        **study("p1.gates.smoke.check_smoke"),
        settings=conf("p1", "gates"),
    message:
        "Gate: the engine runs on one device and as two stages, with equal logits"


use rule job as check_gates with:
    input:
        gates=expand(
            inter("p1/gates/{gate}.parquet"),
            gate=["environment", "outputs", "snapshot", "gguf", "smoke"],
        ),
    output:
        gates=inter("p1/gates.parquet"),
    pathvars:
        job="check_gates",
    localrule: True
    params:
        **study("p1.gates.summary.check_gates"),
    message:
        "All gates in one table; every measuring rule waits for it"


use rule larger as check_architectures with:
    output:
        table("p1_architectures", "Gates", "Decoder against Transformers"),
    pathvars:
        job="check_architectures",
    params:
        **publish("p1.architectures.measure.check_architectures"),
        settings=conf("p1", "architectures"),
        seed=conf("seed"),
    message:
        "Every architecture beside Transformers: logits, keys, values and greedy tokens"
