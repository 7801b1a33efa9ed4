"""Figure 2: the share of prefill in a rollout (P1-1.1)."""

from ember.figures.p1_fig2 import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.rollout import PREFILL_SHARE
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.share, PREFILL_SHARE), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
