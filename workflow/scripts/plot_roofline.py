"""Decoding speed against the memory's limit, by batch size (P1-1, P1-4)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.roofline.figure import draw
from ember.studies.p1.roofline.tables import DECODE_KERNELS, ROOFLINE
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.roofline, ROOFLINE),
        read_table(run.input.kernels, DECODE_KERNELS),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
