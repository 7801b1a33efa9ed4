# Corpora, tokenizer and models: what the programmes are measured on.


# Local, on a cluster too: what it fetches may need the network.
use rule larger as build_corpus with:
    output:
        corpus=inter("corpora/{corpus}.parquet"),
    pathvars:
        job="build_corpus_{corpus}",
    priority: 2
    localrule: True
    params:
        **study("shared.corpora.make.build_corpus"),
        settings=lambda w: conf("corpora", w.corpus),
        content=lambda w: content_of("corpora", w.corpus),
        seed=conf("seed"),
    message:
        "Collect the corpus {wildcards.corpus}, split by document and hashed"


use rule larger as train_tokenizer with:
    input:
        corpora=expand(
            inter("corpora/{corpus}.parquet"), corpus=conf("tokenizer", "corpora")
        ),
    output:
        tokenizer=directory(inter("tokenizer")),
    pathvars:
        job="train_tokenizer",
    priority: 2
    threads: threads_for_model()
    params:
        **study("shared.tokenizer.make.train_tokenizer"),
        settings=conf("tokenizer"),
    message:
        "Train the byte-level BPE tokenizer"


use rule held as train_model with:
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
    pathvars:
        job="train_model_{model}",
    wildcard_constraints:
        model=models_from("train"),
    priority: 2  # most of a programme waits for it
    params:
        **study("shared.models.train.train_model"),
        settings=lambda w: conf("models", w.model),
        state=lambda w: inter(f"states/{w.model}.pt"),
    message:
        "Train the model {wildcards.model} (resumes where it was stopped)"


# Local, on a cluster too: what it fetches may need the network.
use rule job as fetch_model with:
    output:
        model=directory(inter("models/{model}")),
    pathvars:
        job="fetch_model_{model}",
    wildcard_constraints:
        model=models_from("random", "local", "hub"),
    localrule: True
    resources:
        mem_mb=grow(2000),
        runtime=model_runtime(),
    params:
        **study("shared.models.fetch.fetch_model"),
        settings=lambda w: conf("models", w.model),
        content=lambda w: content_of("models", w.model),
        seed=conf("seed"),
    message:
        "Take the model {wildcards.model} from its source"
