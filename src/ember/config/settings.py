"""The configuration, typed: what every key means, its unit and its bounds.

The Snakefile merges `config/config.yaml`, the scale file and the command line, hands the result to
`ember.config.load.load`, and rules read plain values from it. `workflow/schemas/config.schema.json`
is generated from these models (`ember config-schema`), so editors can check a scale file too.
"""

from typing import Annotated, Literal

from pydantic import Field

from ember.config.c2c import C2C
from ember.config.lowbit import Lowbit
from ember.config.p1 import P1
from ember.config.shared import Corpus, Model, Named, Resources, Strict, Tokenizer, Workflow
from ember.config.streaming import Streaming


class Config(Strict):
    """The whole configuration of one workflow run."""

    scale: Literal["smoke", "tiny", "gpu", "paper"] = Field(
        description="smoke: tests; tiny: two CPU cores; gpu: one accelerator, no network; paper: "
        "the named models and data sets"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="seed of everything random")
    device: Literal["cpu", "cuda"] = Field(description="where models run")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="weights and KV caches")
    resources: Resources
    workflow: Workflow = Workflow()
    corpora: Named[Corpus]
    tokenizer: Tokenizer
    models: Named[Model]
    p1: P1
    streaming: Streaming
    lowbit: Lowbit
    c2c: C2C
