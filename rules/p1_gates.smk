# P1-0: nothing is measured before these hold. One row each.


# Seconds of work: not worth a cluster job each.
localrules:
    check_gates,


rule gate_environment:
    output:
        gate=inter("p1/gates/environment.parquet"),
    log:
        logs("gate_environment"),
    benchmark:
        bench("gate_environment")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
        gpu=gpus(),
    params:
        runtime=runtime_settings(),
        code=code("gate_environment.py"),
    message:
        "Gate: the environment is recorded and has the device it needs"
    script:
        scripts("gate_environment.py")


rule gate_outputs:
    output:
        gate=inter("p1/gates/outputs.parquet"),
    log:
        logs("gate_outputs"),
    benchmark:
        bench("gate_outputs")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("gate_outputs.py"),
    message:
        "Gate: results can be written, whole or not at all"
    script:
        scripts("gate_outputs.py")


rule gate_snapshot:
    input:
        model=model_dir(),
    output:
        gate=inter("p1/gates/snapshot.parquet"),
        snapshot=inter("p1/model_snapshot.parquet"),
    log:
        logs("gate_snapshot"),
    benchmark:
        bench("gate_snapshot")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
    params:
        name=conf("p1", "model"),
        settings=conf("models", conf("p1", "model")),
        code=code("gate_snapshot.py"),
    message:
        "Gate: the main model's snapshot is fixed and hashed"
    script:
        scripts("gate_snapshot.py")


rule gate_gguf:
    input:
        model=model_dir(),
    output:
        gate=inter("p1/gates/gguf.parquet"),
        gguf=directory(inter("p1/gguf")),
    log:
        logs("gate_gguf"),
    benchmark:
        bench("gate_gguf")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
    params:
        code=code("gate_gguf.py"),
    message:
        "Gate: the same weights as GGUF, hashed (what llama.cpp will read)"
    script:
        scripts("gate_gguf.py")


rule gate_smoke:
    input:
        model=model_dir(),
        environment=inter("p1/gates/environment.parquet"),
    output:
        gate=inter("p1/gates/smoke.parquet"),
    log:
        logs("gate_smoke"),
    benchmark:
        bench("gate_smoke")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=conf("p1", "gates"),
        runtime=runtime_settings(),
        code=code("gate_smoke.py"),
    message:
        "Gate: the engine runs on one device and as two stages, with equal logits"
    script:
        scripts("gate_smoke.py")


rule check_gates:
    input:
        gates=expand(
            inter("p1/gates/{gate}.parquet"),
            gate=["environment", "outputs", "snapshot", "gguf", "smoke"],
        ),
    output:
        gates=inter("p1/gates.parquet"),
    log:
        logs("check_gates"),
    benchmark:
        bench("check_gates")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(1000),
        runtime=minutes(5),
    params:
        code=code("check_gates.py"),
    message:
        "All gates in one table; every measuring rule waits for it"
    script:
        scripts("check_gates.py")


rule check_architectures:
    output:
        reported_table("p1_architectures", "P1", "Gates"),
    log:
        logs("check_architectures"),
    benchmark:
        bench("check_architectures")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=minutes(10),
    params:
        settings=conf("p1", "architectures"),
        seed=conf("seed"),
        code=code("check_architectures.py"),
    message:
        "Every architecture beside Transformers: logits, keys, values and greedy tokens"
    script:
        scripts("check_architectures.py")
