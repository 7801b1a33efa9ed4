"""What each layer, embedding, head and message costs: the prediction's input (P1-1.2)."""

from ember.operations import job
from ember.studies.p1.pipeline.measure import profile_layers
from ember.studies.p1.pipeline.tables import LAYER_COSTS

with job.start(snakemake) as run:
    rows = profile_layers(model=run.input.model, **run.params.settings, **run.params.runtime)
    run.table(rows, LAYER_COSTS)
