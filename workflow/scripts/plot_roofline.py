"""Decoding speed against the memory's limit, by batch size (P1-1, P1-4)."""

from ember.figures.p1_roofline import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.roofline import DECODE_KERNELS, ROOFLINE
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.roofline, ROOFLINE),
        read_table(run.input.kernels, DECODE_KERNELS),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
