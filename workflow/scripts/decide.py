"""Every go/no-go rule, applied to the tables it names."""

from ember.operations import job
from ember.operations.publish import publish
from ember.records.tables import read_rows
from ember.studies.p1.gates.tables import GATES
from ember.studies.p1.lora_alignment.tables import (
    LORA_ALIGNMENT,
    LORA_EXACT,
    LORA_LATENCY_SUMMARY,
    LORA_WEIGHTS,
)
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.p1.speed.tables import ENGINE_SPEED
from ember.studies.paper.decisions.summary import decide
from ember.studies.paper.decisions.tables import DECISIONS

with job.start(snakemake) as run:
    rows = decide(
        read_rows(run.input.gates, GATES),
        read_rows(run.input.share, PREFILL_SHARE),
        read_rows(run.input.savings, PREFIX_SAVINGS),
        read_rows(run.input.speed, ENGINE_SPEED),
        read_rows(run.input.alignment, LORA_ALIGNMENT),
        read_rows(run.input.weights, LORA_WEIGHTS),
        read_rows(run.input.latency, LORA_LATENCY_SUMMARY),
        read_rows(run.input.exact, LORA_EXACT),
        thresholds=run.params.thresholds,
        scale=run.params.scale,
    )
    publish(run, rows, DECISIONS)
