"""Figure 2: the share of prefill in a rollout (P1-1.1)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.profile.figure import draw
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.share, PREFILL_SHARE), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
