# Real pairs (C-M0, rows A1 and A2): named models, a published fuser, published questions.


# Local, on a cluster too: what it fetches may need the network.
use rule job as fetch_fuser with:
    output:
        fuser=directory(inter("c2c/real/fusers/{pair}")),
    pathvars:
        job="fetch_fuser_{pair}",
    wildcard_constraints:
        pair=c2c_names("pairs"),
    localrule: True
    params:
        **study("c2c.real.make.fetch_fuser"),
        settings=lambda w: c2c_real("pairs", w.pair, "fuser"),
        content=lambda w: c2c_copy(c2c_real("pairs", w.pair, "fuser")),
    message:
        "Take the published fuser of {wildcards.pair} from its source"


# Local, on a cluster too: what it fetches may need the network.
use rule job as collect_questions with:
    output:
        questions=inter("c2c/real/questions/{benchmark}.parquet"),
    pathvars:
        job="collect_questions_{benchmark}",
    wildcard_constraints:
        benchmark=c2c_names("benchmarks"),
    localrule: True
    params:
        **study("c2c.real.make.collect_questions"),
        settings=lambda w: c2c_real("benchmarks", w.benchmark),
        content=lambda w: c2c_copy(c2c_real("benchmarks", w.benchmark)),
    message:
        "Read the questions of {wildcards.benchmark}"


use rule timed as answer_questions with:
    input:
        unpack(c2c_real_inputs),
        questions=inter("c2c/real/questions/{benchmark}.parquet"),
    output:
        answers=inter("c2c/real/answers/{pair}.{benchmark}.parquet"),
        stages=inter("c2c/real/stages/{pair}.{benchmark}.parquet"),
    pathvars:
        job="answer_questions_{pair}_{benchmark}",
    wildcard_constraints:
        pair=c2c_names("pairs"),
        benchmark=c2c_names("benchmarks"),
    params:
        **study("c2c.real.measure.answer_questions"),
        settings=lambda w: c2c_real("pairs", w.pair),
        protocol=c2c_protocol(),
        pair=lambda w: w.pair,
        benchmark=lambda w: w.benchmark,
        runtime=runtime_settings(),
    message:
        "{wildcards.pair} answers {wildcards.benchmark} by every method"


use rule job as summarise_real with:
    input:
        answers=c2c_real_tables("answers"),
        stages=c2c_real_tables("stages"),
    output:
        table("c2c_real", "M0", "Real pairs against baselines, and as published"),
    pathvars:
        job="summarise_real",
    localrule: True
    params:
        **publish("c2c.real.summary.summarise_real"),
        resamples=conf("c2c", "resamples"),
        seed=conf("seed"),
    message:
        "Accuracies of real pairs (C-M0)"
