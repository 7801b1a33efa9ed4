"""Every go/no-go rule, applied to the tables it names."""

from ember.experiments.decisions import decide
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.decisions import DECISIONS
from ember.records.schemas.gates import GATES
from ember.records.schemas.lora import (
    LORA_ALIGNMENT,
    LORA_EXACT,
    LORA_LATENCY_SUMMARY,
    LORA_WEIGHTS,
)
from ember.records.schemas.prefix import PREFIX_SAVINGS
from ember.records.schemas.rollout import PREFILL_SHARE
from ember.records.schemas.speed import ENGINE_SPEED
from ember.records.tables import read_rows

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
