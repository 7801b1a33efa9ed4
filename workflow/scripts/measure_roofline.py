"""Decoding against the memory's limit, by batch size and by kernel (P1-1, P1-4)."""

from ember.operations import job
from ember.studies.p1.roofline.measure import measure_decode
from ember.studies.p1.roofline.tables import DECODE_KERNELS, DECODE_ROOFLINE, PREFILL_TIMES

with job.start(snakemake) as run:
    decode, kernels, prefills = measure_decode(
        model=run.input.model, **run.params.settings, **run.params.runtime
    )
    run.table(decode, DECODE_ROOFLINE, run.output.decode)
    run.table(kernels, DECODE_KERNELS, run.output.kernels)
    run.table(prefills, PREFILL_TIMES, run.output.prefills)
