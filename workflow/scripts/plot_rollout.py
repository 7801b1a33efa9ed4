"""Speed of the batched rollout against its batch size (P1-4)."""

from ember.figures.p1_rollout import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.rollout_core import ROLLOUT_SPEED
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.speed, ROLLOUT_SPEED), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
