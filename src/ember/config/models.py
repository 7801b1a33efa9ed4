"""The configuration, typed: what every key means, its unit and its bounds.

The Snakefile merges `config/config.yaml`, the scale file and the command line, hands the result to
`ember.config.load.load`, and rules read plain values from it. `workflow/schemas/config.schema.json`
is generated from these models (`ember config-schema`), so editors can check a scale file too.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """A section that refuses unknown keys and silent conversions (`"5"` is not 5)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Corpus(Strict):
    """Where a corpus comes from."""

    source: Literal["stdlib", "pydoc", "files", "hub"] = Field(
        description="stdlib: the standard library's sources; pydoc: its topic texts; files: local "
        "text files; hub: a data set of the Hugging Face hub (or a local copy of one)"
    )
    max_bytes: Count | None = Field(None, description="keep at most this many bytes of text")
    paths: list[str] = Field([], description="files or globs, for source files")
    hub_id: str | None = Field(None, description="data set id or local path, for source hub")
    name: str | None = Field(None, description="configuration name of the hub data set")
    split: str = Field("train", description="split of the hub data set")
    column: str = Field("text", description="text column of the hub data set")
    revision: str | None = Field(None, description="revision of the hub data set")

    @model_validator(mode="after")
    def _complete(self):
        if self.source == "files" and not self.paths:
            raise ValueError("source files needs paths: set it to the text files to read")
        if self.source == "hub" and not self.hub_id:
            raise ValueError("source hub needs hub_id: set it to a data set id or a local path")
        return self


class Tokenizer(Strict):
    """The byte-level BPE tokenizer trained in the workflow."""

    corpora: list[str] = Field(description="corpora it is trained on")
    vocab_size: Annotated[int, Field(ge=258)] = Field(description="entries, special tokens too")
    train_bytes: Count = Field(description="bytes of training text it is trained on")


class Training(Strict):
    """Language-model training of a model with `source: train`."""

    corpora: list[str] = Field(description="corpora the model is trained on, mixed by size")
    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(description="sequences a step")
    sequence_length: Annotated[int, Field(ge=8)] = Field(description="tokens a sequence")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon: for the matrices inside the layers, AdamW for the rest"
    )
    learning_rate: Positive = Field(
        description="peak rate of the layers' matrices; with muon the others take 6 times that"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="linear warm-up, in steps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="on matrices but not on embeddings and norms"
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
    architecture: dict[str, int | float | bool | str | list[int]] = Field(
        {}, description="fields of the architecture, over the preset's"
    )
    training: Training | None = Field(None, description="for source train")
    path: str | None = Field(None, description="for source local")
    hub_id: str | None = Field(None, description="for source hub")
    revision: str | None = Field(None, description="for source hub: pin it")

    @model_validator(mode="after")
    def _complete(self):
        needs = {"train": "training", "local": "path", "hub": "hub_id"}.get(self.source)
        if needs and getattr(self, needs) is None:
            raise ValueError(
                f"source {self.source} needs {needs}: set it, or choose another source"
            )
        if self.source in ("train", "random") and not (self.preset or self.architecture):
            raise ValueError("needs a shape: set preset or architecture")
        return self


class Gates(Strict):
    """P1-0: what must hold before anything is measured."""

    tolerance: Positive = Field(
        1e-4, description="largest absolute logit difference between one and two pipeline stages"
    )
    tokens: Count = Field(64, description="prompt tokens of the smoke run")
    new_tokens: Count = Field(8, description="generated tokens of the smoke run")


class Profile(Strict):
    """P1-1.1: rollout time decomposition."""

    contexts: list[Count] = Field(description="prompt tokens")
    generations: list[Annotated[int, Field(ge=2)]] = Field(description="generated tokens")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded runs a point")
    repeats: Count = Field(description="recorded runs a point")


class Prefix(Strict):
    """P1-2: shared-prefix workload and the prefix cache."""

    documents: Count = Field(description="documents that share the prefix")
    shards: Count = Field(
        1, description="jobs the documents are divided among: a preempted one loses its own part"
    )
    prompts: list[Count] = Field(description="prompt tokens (prefix and suffix)")
    prefix_fractions: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        description="length of the shared prefix as a fraction of the prompt"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded prompts a point")
    budget_mb: Positive = Field(description="byte budget of the prefix cache, in MB")
    tolerance: Positive = Field(1e-3, description="largest logit difference to the uncached run")

    @model_validator(mode="after")
    def _every_shard_has_a_document(self):
        if self.shards > self.documents:
            raise ValueError(f"shards is {self.shards}, more than the {self.documents} documents")
        return self


class Pipeline(Strict):
    """P1-1.2: two pipeline stages, swept over splits with and without overlap."""

    split_fractions: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 1 / 3, 0.5, 2 / 3, 0.75],
        min_length=1,
        description="layers of the first stage as fractions of the depth: 9, 12, 18, 24 and 27 of "
        "36; splits that fall together are run once",
    )
    context: Count = Field(description="prompt tokens")
    generation: Annotated[int, Field(ge=2)] = Field(description="generated tokens")
    sequences: Count = Field(description="sequences generated together")
    micro_batches: Count = Field(description="parts of the batch that are in flight one by one")
    chunks: Count = Field(1, description="pieces in which a prompt is prefilled")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded runs a point")
    repeats: Count = Field(description="recorded runs a point")
    cost_repeats: Count = Field(description="recorded runs of every part of the model")
    rollout_split: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="split of the rollout profile's two-stage modes"
    )
    rollout_chunks: Count = Field(
        4, description="pieces in which their prompt is prefilled: all that overlaps in batch 1"
    )
    rollout_repeats: Count = Field(description="their recorded runs a point")
    gpus: Annotated[int, Field(ge=1, le=2)] = Field(
        1,
        description="GPUs that a two-stage job asks for at scales with GPUs; where it sees fewer "
        "than two its rows are skipped",
    )
    timeout: Positive = Field(300.0, description="seconds after which a silent stage has failed")
    anchor: str | None = Field(
        None, description="an earlier p1_pipeline.parquet to compare with, point by point"
    )

    @model_validator(mode="after")
    def _divisible(self):
        if self.sequences % self.micro_batches:
            raise ValueError(
                f"sequences {self.sequences} must be a multiple of micro_batches "
                f"{self.micro_batches}: the prediction takes them to be equal"
            )
        return self


class Speed(Strict):
    """Engine against Transformers' generate, side by side."""

    prompt_tokens: Count = Field(description="prompt tokens")
    new_tokens: Count = Field(description="generated tokens")
    repeats: Count = Field(description="recorded runs of each engine, alternating")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded runs of each engine")


class Cut(Strict):
    """How tokens are chosen in a measurement: fields of SamplingParams."""

    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0: greedy")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="1: all")
    min_p: Fraction = Field(0.0, description="0: all")


class Roofline(Strict):
    """Decoding against the memory's limit, by batch size."""

    contexts: list[Count] = Field(description="prompt tokens")
    rows: list[Count] = Field(description="candidates of one prompt: the batch of a step")
    new_tokens: Annotated[int, Field(ge=2)] = Field(128, description="generated tokens of each")
    samplings: list[Cut] = Field([Cut()], min_length=1, description="how tokens are chosen")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded runs a point")
    repeats: Count = Field(description="recorded runs a point")


class Framework(Strict):
    """One framework of the comparison: an adapter, and the Python that it runs in."""

    adapter: Literal[
        "ember_engine",
        "ember_pipeline",
        "transformers_generate",
        "llama_cpp_decode",
        "vllm_offline",
        "sglang_offline",
    ] = Field(description="file of src/ember/peers/adapters")
    python: str | None = Field(
        None,
        description="interpreter of its environment, from the checkout on; null: this project's",
    )
    arguments: dict[str, int | float | bool | str] = Field(
        {}, description="what the adapter hands on to the framework"
    )


class FrameworkPoint(Strict):
    """One model and pair of lengths that frameworks are compared at."""

    name: str = Field(description="name of the point in the tables")
    prompt_tokens: Count = Field(description="prompt tokens")
    new_tokens: Annotated[int, Field(ge=2)] = Field(description="generated tokens")
    preset: str | None = Field(
        None, description="a shape with random weights, written for the comparison, not p1.model"
    )
    frameworks: list[str] = Field([], description="only these (empty: all)")
    needs: str | None = Field(None, description="skip the point where this one is not installed")


class Frameworks(Strict):
    """P1-1.3: this engine beside other frameworks."""

    peers: dict[str, Framework] = Field(description="by the name that the tables use")
    points: list[FrameworkPoint] = Field(min_length=1)
    repeats: Count = Field(3, description="recorded rounds: each framework once a round")
    warmup: Count = Field(1, description="unrecorded rounds; the first one may compile")
    timeout_s: Positive = Field(300.0, description="for starting, and for each generation")
    mem_mb: Count = Field(description="memory of the job: every framework holds the model, in MB")

    @model_validator(mode="after")
    def _known(self):
        for point in self.points:
            for name in [*point.frameworks, *filter(None, [point.needs])]:
                if name not in self.peers:
                    raise ValueError(
                        f"point {point.name}: {name!r} is not one of {', '.join(self.peers)}"
                    )
        if len({point.name for point in self.points}) < len(self.points):
            raise ValueError("two points have the same name")
        return self


class Loading(Strict):
    """P1-1.4: loading times, and the way to the first token."""

    repeats: Count = Field(3, description="processes of each kind")
    prompt_tokens: Count = Field(description="prompt of the first token")


class Memory(Strict):
    """P1-1.5: memory, predicted and measured."""

    context: Count = Field(description="prompt tokens")
    batch: Count = Field(1, description="prompts at once")


class Restart(Strict):
    """Prefill restarted at a layer, and the low-rank correction of stale KV."""

    layer_fractions: list[Fraction] = Field(description="restart layer as a fraction of the depth")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded runs a point")
    repeats: Count = Field(description="recorded runs a point")


class WorkloadPoint(Strict):
    """One workload of the cumulative cost."""

    context: Count = Field(description="prompt tokens")
    generation: Count = Field(description="generated tokens a candidate")
    prefix: Count = Field(description="tokens of the prompt that all prompts share")

    @model_validator(mode="after")
    def _inside(self):
        if self.prefix >= self.context:
            raise ValueError(f"prefix {self.prefix} must be below context {self.context}")
        return self


class Rounds(Strict):
    """P1-6: the loop whose cost is accumulated."""

    rounds: Count = Field(30, description="policy updates")
    prompts: Count = Field(100, description="prompts a round")
    candidates: Count = Field(8, description="candidates a prompt")
    points: list[WorkloadPoint] = Field(description="workloads")
    bootstrap: Annotated[int, Field(ge=100)] = Field(1000, description="resamples of an interval")


class RolloutPoint(Strict):
    """One call of the batched rollout."""

    prompts: Count = Field(description="prompts of the call, each a document of the workload")
    candidates: Count = Field(description="candidates of each prompt")
    rows: Count = Field(description="the most candidates that decode together")


class Consistency(Strict):
    """P1-4.3: a rollout again, under other batch compositions, and by other means."""

    prompts: Count = Field(description="prompts, of different lengths")
    candidates: Count = Field(description="candidates of each prompt")
    prompt_tokens: Count = Field(description="tokens of the longest prompt")
    new_tokens: Count = Field(description="generated tokens a candidate")
    rows: Count = Field(description="candidates that decode together")
    tolerance: Positive = Field(
        1e-4, description="largest log-probability difference where bits may differ"
    )


class Rollout(Strict):
    """P1-4: continuous batching against the read bandwidth of its batches."""

    context: Count = Field(description="prompt tokens")
    prefix: Annotated[int, Field(ge=0)] = Field(
        0, description="of them shared by all prompts; above 0 the prefix cache is on"
    )
    generation: Annotated[int, Field(ge=2)] = Field(description="generated tokens a candidate")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded calls a point")
    repeats: Count = Field(description="recorded calls a point")
    points: list[RolloutPoint] = Field(min_length=1, description="calls")

    @model_validator(mode="after")
    def _inside(self):
        if self.prefix >= self.context:
            raise ValueError(f"prefix {self.prefix} must be below context {self.context}")
        return self


class Policy(Strict):
    """P1-5: a cache policy and its parameters."""

    name: Literal[
        "naive", "prefix_only", "update_locality", "periodic_refresh", "updatable_kv", "keep_region"
    ]
    freeze: Fraction | None = Field(None, description="frozen first layers, as a fraction")
    freeze_layers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="frozen first layers, as a number"
    )
    every: Count | None = Field(None, description="rounds between full refreshes")
    rank: Count | None = Field(None, description="rank of the low-rank correction")
    share_prefix: bool | None = Field(None, description="also reuse the shared prefix in a round")
    first_layers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="keep_region: first layers taken as valid"
    )
    last_layers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="keep_region: last layers taken as valid"
    )
    last_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="keep_region: last tokens recomputed"
    )


class Decisions(Strict):
    """Thresholds of the rules that turn tables into verdicts."""

    low_prefill_share: Fraction = Field(
        0.3,
        description="P1-1.1: below this share of a single rollout the narrative shifts to "
        "accumulation over rounds x candidates and to sync and memory",
    )
    min_prefix_savings: Fraction = Field(
        0.45, description="P1-2.3: savings expected from reusing half of the prompt"
    )
    min_engine_ratio: Positive = Field(
        3.0, description="decode speed against Transformers' generate on the same machine"
    )
    max_lora_difference: Positive = Field(
        1e-4, description="P1-3.4: delta_max_abs_diff of an adapter's logits in float32"
    )
    max_lora_error_ratio: Positive = Field(
        1.0, description="P1-3.4: half-precision error against that of PEFT's own forward"
    )
    max_lora_ulp: Positive = Field(
        0.51, description="P1-3.5: error of merged 16-bit weights, in units in the last place"
    )
    max_lora_ulp_float32: Positive = Field(
        5.0, description="the same of float32 weights, whose sums round too: (rank + 2) / 2"
    )
    max_lora_ratio_to_limit: Positive = Field(
        2.0, description="P1-3.3: time of an adapter's replacement against the memory's limit"
    )


class Lora(Strict):
    """P1-3: adapters, their alignment with PEFT and the latency of switching them."""

    rank: Count = Field(8, description="rank of the adapters")
    alpha: Positive = Field(16.0, description="scaling is alpha / rank")
    b_std: Positive = Field(0.02, description="standard deviation of B where it is drawn")
    train_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps of the trained adapter; 0 or random weights: there is none"
    )
    train_tokens: Count = Field(128, description="tokens of its sequences, four a step")
    learning_rate: Positive = Field(1e-3, description="AdamW's rate for it")
    dtypes: list[Literal["float32", "bfloat16", "float16"]] = Field(
        ["float32", "bfloat16", "float16"], description="number formats of the alignment"
    )
    prompts: Count = Field(description="prompts of the alignment")
    tokens: Count = Field(description="tokens of each")
    profiled: list[Literal["init", "perturbed", "synthetic", "trained"]] = Field(
        ["perturbed", "trained"], description="adapters with profiles of layers and blocks"
    )
    layer_fractions: list[Fraction] = Field(
        [0.0, 0.5, 1.0], description="layers whose weights and operators are checked"
    )
    freeze_fractions: list[Fraction] = Field(
        [0.5, 2 / 3, 5 / 6], description="frozen first layers: 18, 24 and 30 of 36"
    )
    thresholds: list[Positive] = Field(
        [0.1, 0.25, 0.5, 1.0], description="of the first layer to deviate by as much"
    )
    keeps: list[Literal["device", "host", "none"]] = Field(
        ["device", "host", "none"], description="copies of the base whose latency is compared"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="unrecorded rounds of switches")
    repeats: Count = Field(description="recorded rounds of switches")
    swaps: Count = Field(100, description="switches before the unload that must be exact")


class Architectures(Strict):
    """The decoder against Transformers' models, with small random weights."""

    presets: list[str] = Field(
        min_length=1, description="published shapes; their features stay, their sizes shrink"
    )
    tokens: Count = Field(48, description="prompt tokens")
    new_tokens: Count = Field(32, description="greedily generated tokens")
    draws: Count = Field(2, description="times that weights and prompt are drawn")
    tolerance: Positive = Field(
        1e-4, description="largest absolute difference of a logit, key or value, in float32"
    )


class P1(Strict):
    """KV-cache policies for RL rollouts."""

    model: str = Field(description="name of the model the programme measures")
    gates: Gates = Gates()
    architectures: Architectures
    profile: Profile
    prefix: Prefix
    speed: Speed
    roofline: Roofline
    pipeline: Pipeline
    frameworks: Frameworks
    loading: Loading
    memory: Memory
    restart: Restart
    rounds: Rounds
    lora: Lora
    rollout: Rollout
    consistency: Consistency
    policies: list[Policy] = Field(min_length=1)
    decisions: Decisions = Decisions()

    @model_validator(mode="after")
    def _documents_suffice(self):
        wanted = max([p.prompts for p in self.rollout.points] + [self.consistency.prompts])
        if wanted > self.prefix.documents:
            raise ValueError(
                f"rollouts take {wanted} prompts, the workload has {self.prefix.documents} "
                "documents: raise prefix.documents or lower prompts"
            )
        return self


class Resources(Strict):
    """What a job asks the scheduler for."""

    mem_mb: Count = Field(description="memory of a job that holds a model, in MB")
    runtime: Count = Field(description="minutes of a measuring or training job, at most")
    runtime_factor: Annotated[float, Field(ge=1)] = Field(
        3.0, description="a job asks for this many times what its earlier runs took at most"
    )
    runtime_minimum: Count = Field(5, description="minutes that a job asks for at least")
    threads: Count = Field(description="CPU threads of a measuring or training job")


class Workflow(Strict):
    """How the workflow's own cost is measured."""

    repeats: Count = Field(3, description="runs of each timed command")
    empty_jobs: Count = Field(24, description="empty jobs in a row, to time what one costs")
    overhead_goal: Fraction = Field(
        0.15, description="goal for the share of start, imports, model loading and scheduling"
    )


class Config(Strict):
    """The whole configuration of one workflow run."""

    scale: Literal["smoke", "tiny", "gpu", "paper"] = Field(
        description="smoke: tests; tiny: two CPU cores; gpu: one accelerator, no network; paper: "
        "the named models and data sets"
    )
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of everything random")
    device: Literal["cpu", "cuda"] = Field(description="where models run")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="weights and KV caches")
    resources: Resources
    workflow: Workflow = Workflow()
    corpora: dict[str, Corpus]
    tokenizer: Tokenizer
    models: dict[str, Model]
    p1: P1

    @model_validator(mode="after")
    def _references(self):
        for where, names, known in (
            ("tokenizer.corpora", self.tokenizer.corpora, self.corpora),
            ("p1.model", [self.p1.model], self.models),
            *(
                (f"models.{name}.training.corpora", model.training.corpora, self.corpora)
                for name, model in self.models.items()
                if model.training
            ),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{where}: {name!r} is not one of {', '.join(sorted(known))}")
        return self
