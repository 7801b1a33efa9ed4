"""What every programme's configuration is made of, and the sections that all of them share."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

T = TypeVar("T")


def _distinct(values: list) -> list:
    twice = next((value for n, value in enumerate(values) if value in values[:n]), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice: name everything once")
    return values


# Upper bounds are far above what anyone runs: they catch a slip of the keyboard while planning.
Count = Annotated[int, Field(ge=1, le=10**12)]
NewTokens = Annotated[int, Field(ge=2, le=10**9, description="generated tokens")]
PromptTokens = Annotated[int, Field(ge=1, le=10**9, description="prompt tokens")]
Warmup = Annotated[int, Field(ge=0, le=1000, description="unrecorded runs a point")]
Repeats = Annotated[int, Field(ge=1, le=10_000, description="recorded runs a point")]
Size = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
# An empty list would give an empty table and call it a success.
Some = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]
# Names stand in paths and wildcards.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Named = Annotated[dict[Name, T], Field(min_length=1)]


class Strict(BaseModel):
    """A section that refuses unknown keys and silent conversions (`"5"` is not 5)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class Timed(Strict):
    """A measurement: runs that are recorded, after some that are not."""

    warmup: Warmup = 1
    repeats: Repeats


class Framework(Strict):
    """One framework of the comparison: an adapter, and the Python that it runs in."""

    adapter: str = Field(description="file of src/ember/peers/adapters")
    python: str | None = Field(
        None,
        description="interpreter of its environment, from the checkout on; null: this project's",
    )
    arguments: dict[str, Size | Positive | bool | str] = Field(
        {}, description="what the adapter hands on to the framework"
    )
    environment: dict[str, Size | str] = Field(
        {}, description="variables of its process, such as PYTHONPATH of packages elsewhere"
    )


class Corpus(Strict):
    """Where a corpus comes from."""

    source: Literal["stdlib", "packages", "pydoc", "files", "hub"] = Field(
        description="stdlib: the standard library's sources; packages: those of installed "
        "packages; pydoc: the standard library's topic texts; files: local text files; hub: a data "
        "set of the Hugging Face hub (or a local copy of one)"
    )
    max_bytes: Count | None = Field(None, description="keep at most this many bytes of text")
    packages: Some[str] | None = Field(None, description="distributions, for source packages")
    paths: list[str] = Field([], description="files or globs, for source files")
    hub_id: str | None = Field(None, description="data set id or local path, for source hub")
    name: str | None = Field(None, description="configuration name of the hub data set")
    split: str = Field("train", description="split of the hub data set")
    column: str = Field("text", description="text column of the hub data set")
    revision: str | None = Field(None, description="revision of the hub data set")
    begins: str | None = Field(
        None, description="regular expression of the rows that begin a document; null: each does"
    )

    @model_validator(mode="after")
    def _complete(self):
        try:
            re.compile(self.begins or "")
        except re.error as error:
            raise ValueError(f"begins is no regular expression: {error}") from None
        if self.source == "packages" and not self.packages:
            raise ValueError("source packages needs packages: name installed ones to read")
        if self.source == "files" and not self.paths:
            raise ValueError("source files needs paths: set it to the text files to read")
        if self.source == "hub" and not self.hub_id:
            raise ValueError("source hub needs hub_id: set it to a data set id or a local path")
        return self


class Tokenizer(Strict):
    """The byte-level BPE tokenizer trained in the workflow."""

    corpora: Some[str] = Field(description="corpora it is trained on")
    vocab_size: Annotated[int, Field(ge=258, le=10**6)] = Field(
        description="entries, special tokens too"
    )
    train_bytes: Count = Field(description="bytes of training text it is trained on")


class Training(Strict):
    """Language-model training of a model with `source: train`."""

    corpora: Some[str] = Field(description="corpora the model is trained on, mixed by size")
    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(description="sequences a step")
    sequence_length: Annotated[int, Field(ge=8, le=10**9)] = Field(description="tokens a sequence")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon: for the matrices inside the layers, AdamW for the rest"
    )
    learning_rate: Positive = Field(
        description="peak rate of the layers' matrices; with muon the others take 6 times that"
    )
    warmup_steps: Size = Field(description="linear warm-up, in steps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="on matrices but not on embeddings and norms"
    )
    start_token: bool = Field(
        False,
        description="a fixed token stands first in every sequence: what attention sinks need",
    )
    grad_clip: Positive = Field(1.0, description="global gradient norm")
    validation_tokens: Count = Field(description="tokens of each validation pass")
    validate_every: Count = Field(description="steps between validation passes")
    checkpoint_seconds: Positive = Field(
        30.0, description="seconds between resumable states: what a killed job can lose"
    )


class Model(Strict):
    """A model of the programme, by name."""

    source: Literal["train", "random", "local", "hub"] = Field(
        description="train: trained in the workflow; random: true shape, random weights (times "
        "an engine, supports no quality claim); local: a directory in Hugging Face format; hub: "
        "a hub id"
    )
    preset: str | None = Field(None, description="a shape known to the library, such as qwen3-4b")
    architecture: dict[str, bool | Size | float | str | list[Size]] = Field(
        {}, description="fields of the architecture, over the preset's"
    )
    training: Training | None = Field(None, description="for source train")
    path: str | None = Field(None, description="for source local")
    hub_id: str | None = Field(None, description="for source hub")
    revision: str | None = Field(None, description="for source hub: pin it")

    @model_validator(mode="after")
    def _complete(self):
        needs = {"train": "training", "local": "path", "hub": "hub_id"}.get(self.source)
        if needs and not getattr(self, needs):
            raise ValueError(
                f"source {self.source} needs {needs}: set it, or choose another source"
            )
        if self.source in ("train", "random") and not (self.preset or self.architecture):
            raise ValueError("needs a shape: set preset or architecture")
        return self


class Resources(Strict):
    """What a job asks the scheduler for."""

    mem_mb: Count = Field(description="memory of a job that holds a model, in MB")
    guard_gb: Positive | None = Field(
        None,
        description="memory at which a job that holds a model is ended, in GB (1e9 bytes); null: "
        "0.95 of what the machine or the container has",
    )
    guard_gpu_gb: Positive | None = Field(
        None, description="the same for memory of a GPU, above what it held before; null: no limit"
    )
    runtime: Count = Field(description="minutes of a measuring or training job, at most")
    runtime_factor: Annotated[float, Field(ge=1)] = Field(
        3.0, description="a job asks for this many times what its earlier runs took at most"
    )
    runtime_minimum: Count = Field(5, description="minutes that a job asks for at least")
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="CPU threads of a measuring or training job"
    )


class Workflow(Strict):
    """How the workflow's own cost is measured."""

    repeats: Repeats = Field(3, description="runs of each timed command")
    empty_jobs: Repeats = Field(24, description="empty jobs in a row, to time what one costs")
    overhead_goal: Fraction = Field(
        0.15, description="goal for the share of start, imports, model loading and scheduling"
    )
