"""Figure 3: cumulative cost of the cache policies (P1-6.1)."""

from ember.figures.p1_fig3 import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.policies import CUMULATIVE_COST
from ember.records.tables import read_table

with job.start(snakemake) as run:
    cost = read_table(run.input.cost, CUMULATIVE_COST)
    drawing, caption = draw(cost, run.params.rounds, run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
