# Corpora, tokenizer and models: what the programmes are measured on.


rule build_corpus:
    message:
        "Collect the corpus {wildcards.corpus}, split by document and hashed"
    params:
        settings=lambda w: conf("corpora", w.corpus),
        seed=conf("seed"),
        code=code("build_corpus.py"),
    output:
        corpus=inter("corpora/{corpus}.parquet"),
    log:
        logs("build_corpus_{corpus}"),
    benchmark:
        bench("build_corpus_{corpus}")
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(10),
    conda:
        ENVIRONMENT
    script:
        scripts("build_corpus.py")


rule train_tokenizer:
    message:
        "Train the byte-level BPE tokenizer"
    input:
        corpora=expand(inter("corpora/{corpus}.parquet"), corpus=conf("tokenizer", "corpora")),
    params:
        settings=conf("tokenizer"),
        code=code("train_tokenizer.py"),
    output:
        tokenizer=directory(inter("tokenizer")),
    log:
        logs("train_tokenizer"),
    benchmark:
        bench("train_tokenizer")
    threads: threads_for_model()
    resources:
        mem_mb=grow(2000),
        runtime=grow(10),
    conda:
        ENVIRONMENT
    script:
        scripts("train_tokenizer.py")


rule train_model:
    message:
        "Train the model {wildcards.model} (resumes where it was stopped)"
    input:
        corpora=lambda w: expand(
            inter("corpora/{corpus}.parquet"),
            corpus=conf("models", w.model, "training", "corpora"),
        ),
        tokenizer=inter("tokenizer"),
    params:
        settings=lambda w: conf("models", w.model),
        runtime=runtime_settings(),
        state=lambda w: inter(f"states/{w.model}.pt"),
        code=code("train_model.py"),
    output:
        model=directory(inter("models/{model}")),
        card=inter("cards/{model}.parquet"),
        training=inter("training/{model}.parquet"),
    log:
        logs("train_model_{model}"),
    benchmark:
        bench("train_model_{model}")
    wildcard_constraints:
        model=models_from("train"),
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    conda:
        ENVIRONMENT
    script:
        scripts("train_model.py")


rule fetch_model:
    message:
        "Take the model {wildcards.model} from its source"
    params:
        settings=lambda w: conf("models", w.model),
        seed=conf("seed"),
        code=code("fetch_model.py"),
    output:
        model=directory(inter("models/{model}")),
    log:
        logs("fetch_model_{model}"),
    benchmark:
        bench("fetch_model_{model}")
    wildcard_constraints:
        model=models_from("random", "local", "hub"),
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=model_runtime(),
    conda:
        ENVIRONMENT
    script:
        scripts("fetch_model.py")
