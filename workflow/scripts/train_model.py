"""Train a model; resumes where an earlier run was stopped."""

from pathlib import Path

from ember.operations import job
from ember.studies.shared.models.tables import MODEL_CARD, TRAINING_LOG
from ember.studies.shared.models.train import train_model

with job.start(snakemake) as run:
    card, training = train_model(
        run.input.corpora,
        run.input.tokenizer,
        run.params.settings,
        runtime=run.params.runtime,
        out=run.output.model,
        state=run.params.state,
        code=run.params.code,
    )
    run.stamp(run.output.model)
    run.table(training, TRAINING_LOG, run.output.training)
    run.table(card, MODEL_CARD, run.output.card)
    Path(run.params.state).unlink(missing_ok=True)
