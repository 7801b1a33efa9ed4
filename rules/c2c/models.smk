# C2C: the pair, its world's questions, and its fuser (C-0.5). Models this small train on one thread
# each, side by side, and what all wait for before controls.


use rule held as train_c2c_model with:
    output:
        model=directory(inter("c2c/models/{seed}/{role}")),
        training=inter("c2c/models/{seed}/{role}.parquet"),
    pathvars:
        job="train_c2c_model_{seed}_{role}",
    wildcard_constraints:
        role="sharer|receiver",
    priority: 1
    threads: 1
    params:
        **study("c2c.models.make.train_reader"),
        role=lambda w: w.role,
        world=conf("c2c", "world"),
        reader=lambda w: conf("c2c", w.role),
        world_seed=lambda w: int(w.seed),
        state=lambda w: c2c_state(w, w.role),
        runtime=runtime_settings(),
    message:
        "Train the {wildcards.role} of world {wildcards.seed} (resumes where it was stopped)"


use rule held as tune_c2c_receiver with:
    input:
        receiver=inter("c2c/models/{seed}/receiver"),
    output:
        model=directory(inter("c2c/models/{seed}/tuned")),
        training=inter("c2c/models/{seed}/tuned.parquet"),
    pathvars:
        job="tune_c2c_receiver_{seed}",
    threads: 1
    params:
        **study("c2c.models.make.tune_receiver"),
        world=conf("c2c", "world"),
        training=conf("c2c", "receiver", "training"),
        steps=conf("c2c", "tuned_steps"),
        world_seed=lambda w: int(w.seed),
        state=lambda w: c2c_state(w, "tuned"),
        runtime=runtime_settings(),
    message:
        "Fine-tune the receiver of world {wildcards.seed} alone, a control"


use rule job as make_c2c_questions with:
    output:
        questions=inter("c2c/models/{seed}/questions.parquet"),
    pathvars:
        job="make_c2c_questions_{seed}",
    params:
        **study("c2c.models.questions.make_questions"),
        world=conf("c2c", "world"),
        world_seed=lambda w: int(w.seed),
        settings=conf_of(["c2c", "evaluation"], "passages", "questions"),
    message:
        "Questions of world {wildcards.seed}, development and test"


use rule held as train_c2c_fuser with:
    input:
        sharer=inter("c2c/models/{seed}/sharer"),
        receiver=inter("c2c/models/{seed}/receiver"),
    output:
        fuser=directory(inter("c2c/fuser/{seed}/{kind}")),
        training=inter("c2c/fuser/{seed}/{kind}.parquet"),
    pathvars:
        job="train_c2c_fuser_{seed}_{kind}",
    wildcard_constraints:
        kind="own|self",
    priority: 1
    threads: 1
    params:
        **study("c2c.fuser.make.train_fuser"),
        kind=lambda w: w.kind,
        world=conf("c2c", "world"),
        settings=lambda w: c2c_fuser(w.kind),
        world_seed=lambda w: int(w.seed),
        state=lambda w: c2c_state(w, f"{w.kind}_fuser"),
        runtime=runtime_settings(),
    message:
        "Train the fuser ({wildcards.kind}) of world {wildcards.seed}"
