"""Figure 3: cumulative cost of the cache policies (P1-6.1)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.policies.figure import draw
from ember.studies.p1.policies.tables import CUMULATIVE_COST
from ember.studies.style import save

with job.start(snakemake) as run:
    cost = read_table(run.input.cost, CUMULATIVE_COST)
    drawing, caption = draw(cost, run.params.rounds, run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
