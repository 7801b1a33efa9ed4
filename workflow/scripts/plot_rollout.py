"""Speed of the batched rollout against its batch size (P1-4)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.rollout.figure import draw
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.speed, ROLLOUT_SPEED), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
