"""Mean, spread, ratios and caveats of every framework (P1-1.3)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.frameworks.summary import summarise_frameworks
from ember.studies.p1.frameworks.tables import FRAMEWORKS

with job.start(snakemake) as run:
    publish(run, summarise_frameworks(run.input.runs), FRAMEWORKS)
