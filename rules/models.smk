# Corpora, tokenizer and models: what the programmes are measured on.


# On a cluster these run where the workflow was started: what they fetch may need the network.
localrules:
    build_corpus,
    fetch_model,


rule build_corpus:
    output:
        corpus=inter("corpora/{corpus}.parquet"),
    log:
        logs("build_corpus_{corpus}"),
    benchmark:
        bench("build_corpus_{corpus}")
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(10),
    params:
        settings=lambda w: conf("corpora", w.corpus),
        seed=conf("seed"),
        code=code("build_corpus.py"),
    message:
        "Collect the corpus {wildcards.corpus}, split by document and hashed"
    script:
        scripts("build_corpus.py")


rule train_tokenizer:
    input:
        corpora=expand(
            inter("corpora/{corpus}.parquet"), corpus=conf("tokenizer", "corpora")
        ),
    output:
        tokenizer=directory(inter("tokenizer")),
    log:
        logs("train_tokenizer"),
    benchmark:
        bench("train_tokenizer")
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=grow(2000),
        runtime=grow(10),
    params:
        settings=conf("tokenizer"),
        code=code("train_tokenizer.py"),
    message:
        "Train the byte-level BPE tokenizer"
    script:
        scripts("train_tokenizer.py")


rule train_model:
    input:
        corpora=lambda w: expand(
            inter("corpora/{corpus}.parquet"),
            corpus=conf("models", w.model, "training", "corpora"),
        ),
        tokenizer=inter("tokenizer"),
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
    conda:
        ENVIRONMENT
    threads: threads_for_model()
    resources:
        mem_mb=model_memory(),
        runtime=model_runtime(),
        gpu=gpus(),
    params:
        settings=lambda w: conf("models", w.model),
        runtime=runtime_settings(),
        state=lambda w: inter(f"states/{w.model}.pt"),
        code=code("train_model.py"),
    message:
        "Train the model {wildcards.model} (resumes where it was stopped)"
    script:
        scripts("train_model.py")


rule fetch_model:
    output:
        model=directory(inter("models/{model}")),
    log:
        logs("fetch_model_{model}"),
    benchmark:
        bench("fetch_model_{model}")
    wildcard_constraints:
        model=models_from("random", "local", "hub"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=model_runtime(),
    params:
        settings=lambda w: conf("models", w.model),
        seed=conf("seed"),
        code=code("fetch_model.py"),
    message:
        "Take the model {wildcards.model} from its source"
    script:
        scripts("fetch_model.py")
