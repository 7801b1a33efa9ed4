"""Adapters against PEFT: logits, weights, layers, blocks, operators (P1-3.4 to P1-3.7)."""

from ember.operations import job
from ember.studies.p1.lora_alignment import tables as lora
from ember.studies.p1.lora_alignment.measure import align

with job.start(snakemake) as run:
    found = align(
        model=run.input.model,
        workload=run.input.workload,
        adapters=run.input.adapters,
        settings=run.params.settings,
        **run.params.runtime,
    )
    run.table(found.cases, lora.LORA_CASES, run.output.cases)
    run.table(found.weights, lora.LORA_WEIGHTS, run.output.weights)
    run.table(found.layers, lora.LORA_LAYERS, run.output.layers)
    run.table(found.freeze, lora.LORA_FREEZE, run.output.freeze)
    run.table(found.blocks, lora.LORA_BLOCKS, run.output.blocks)
    run.table(found.spot, lora.LORA_SPOT, run.output.spot)
