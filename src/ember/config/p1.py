"""P1, KV-cache policies for RL rollouts: a section for each study."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from ember.config.shared import (
    Count,
    Fraction,
    Framework,
    Inside,
    Name,
    Named,
    NewTokens,
    Positive,
    PromptTokens,
    Repeats,
    Size,
    Some,
    Strict,
    Timed,
    Warmup,
)


class Gates(Strict):
    """P1-0: what must hold before anything is measured."""

    tolerance: Positive = Field(
        1e-4, description="largest absolute logit difference between one and two pipeline stages"
    )
    tokens: PromptTokens = Field(64, description="prompt tokens of the smoke run")
    new_tokens: Count = Field(8, description="generated tokens of the smoke run")


class Profile(Timed):
    """P1-1.1: rollout time decomposition."""

    contexts: Some[PromptTokens]
    generations: Some[NewTokens]


class Prefix(Strict):
    """P1-2: shared-prefix workload and the prefix cache."""

    documents: Count = Field(description="documents that share the prefix")
    shards: Count = Field(
        1, description="jobs the documents are divided among: a preempted one loses its own part"
    )
    prompts: Some[PromptTokens] = Field(description="prompt tokens (prefix and suffix)")
    prefix_fractions: Some[Inside] = Field(
        description="length of the shared prefix as a fraction of the prompt"
    )
    warmup: Warmup = Field(1, description="unrecorded prompts a point")
    budget_mb: Positive = Field(description="byte budget of the prefix cache, in MB")
    tolerance: Positive = Field(1e-3, description="largest logit difference to the uncached run")
    identity_documents: Count = Field(
        4, description="of them checked in float32 too, where first tokens must be equal"
    )

    @model_validator(mode="after")
    def _every_shard_has_a_document(self):
        for name in ("shards", "identity_documents"):
            if (asked := getattr(self, name)) > self.documents:
                raise ValueError(f"{name} is {asked}, more than the {self.documents} documents")
        return self


class Pipeline(Timed):
    """P1-1.2: two pipeline stages, swept over splits with and without overlap."""

    split_fractions: Some[Inside] = Field(
        [0.25, 1 / 3, 0.5, 2 / 3, 0.75],
        description="layers of the first stage as fractions of the depth: 9, 12, 18, 24 and 27 of "
        "36; splits that fall together are run once",
    )
    context: PromptTokens
    generation: NewTokens
    sequences: Count = Field(description="sequences generated together")
    micro_batches: Count = Field(description="parts of the batch that are in flight one by one")
    chunks: Count = Field(1, description="pieces in which a prompt is prefilled")
    cost_repeats: Repeats = Field(description="recorded runs of every part of the model")
    rollout_split: Inside = Field(0.5, description="split of the rollout profile's two-stage modes")
    rollout_chunks: Count = Field(
        4, description="pieces in which their prompt is prefilled: all that overlaps in batch 1"
    )
    rollout_repeats: Repeats = Field(description="their recorded runs a point")
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


class Speed(Timed):
    """Engine against Transformers' generate, side by side."""

    prompt_tokens: PromptTokens
    new_tokens: NewTokens


class Cut(Strict):
    """How tokens are chosen in a measurement: fields of SamplingParams."""

    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0: greedy")
    top_k: Size = Field(0, description="0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="1: all")
    min_p: Fraction = Field(0.0, description="0: all")


class Roofline(Timed):
    """Decoding against the memory's limit, by batch size."""

    contexts: Some[PromptTokens] = Field(
        description="the first is that of the comparison with plain operators and of all samplings"
    )
    rows: Some[Count] = Field(description="candidates of one prompt: the batch of a step")
    new_tokens: NewTokens = Field(128, description="generated tokens of each")
    samplings: Some[Cut] = Field([Cut()], description="how tokens are chosen")


class FrameworkLoop(Strict):
    """The loop's workload: a round's prompts and candidates, sampled at temperature 1."""

    prompts: Count = Field(description="prompts of a call, new in every one")
    candidates: Count = Field(description="candidates of each prompt")
    fewer: dict[str, Size] = Field(
        {}, description="fewer prompts for slow frameworks, by name; 0 leaves one out"
    )


class FrameworkPoint(Strict):
    """One model and pair of lengths that frameworks are compared at."""

    name: Name = Field(description="name of the point in the tables")
    prompt_tokens: PromptTokens
    new_tokens: NewTokens
    preset: str | None = Field(
        None, description="a shape with random weights, written for the comparison, not p1.model"
    )
    frameworks: list[str] = Field([], description="only these (empty: all)")
    needs: str | None = Field(None, description="skip the point where this one is not installed")
    loop: FrameworkLoop | None = Field(None, description="besides one rollout; null: not compared")


class Frameworks(Strict):
    """P1-1.3: this engine beside other frameworks."""

    peers: Named[Framework] = Field(description="by the name that the tables use")
    points: Some[FrameworkPoint]
    repeats: Repeats = Field(3, description="recorded rounds: each framework once a round")
    warmup: Warmup = Field(
        2, description="unrecorded rounds of a rollout: compilation, recordings; of the loop one"
    )
    timeout_s: Positive = Field(300.0, description="for starting, and for each generation")
    mem_mb: Count = Field(description="memory of the job: every framework holds the model, in MB")

    @model_validator(mode="after")
    def _known(self):
        for point in self.points:
            fewer = point.loop.fewer if point.loop else {}
            for name in [*point.frameworks, *filter(None, [point.needs]), *fewer]:
                if name not in self.peers:
                    raise ValueError(
                        f"point {point.name}: {name!r} is not one of {', '.join(self.peers)}"
                    )
        if len({point.name for point in self.points}) < len(self.points):
            raise ValueError("two points have the same name")
        return self


class Loading(Strict):
    """P1-1.4: loading times, and the way to the first token."""

    repeats: Repeats = Field(3, description="processes of each kind")
    prompt_tokens: PromptTokens = Field(description="prompt of the first token")


class Memory(Strict):
    """P1-1.5: memory, predicted and measured."""

    context: PromptTokens
    batch: Count = Field(1, description="prompts at once")


class Restart(Timed):
    """Prefills by plan, through the engine."""

    layer_fractions: Some[Fraction] = Field(description="restart layer as a fraction of the depth")


class Shared(Strict):
    """Prompts that begin alike."""

    @model_validator(mode="after")
    def _inside(self):
        if self.prefix >= self.context:
            raise ValueError(f"prefix {self.prefix} must be below context {self.context}")
        return self


class WorkloadPoint(Shared):
    """One workload of the cumulative cost."""

    context: PromptTokens
    generation: Count = Field(description="generated tokens a candidate")
    prefix: Count = Field(description="tokens of the prompt that all prompts share")


class Rounds(Strict):
    """P1-6: the loop whose cost is accumulated."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(30, description="policy updates")
    prompts: Annotated[int, Field(ge=1, le=10**6)] = Field(100, description="prompts a round")
    candidates: Count = Field(8, description="candidates a prompt")
    points: Some[WorkloadPoint] = Field(description="workloads")
    rows: Some[Count] = Field(
        description="candidates that decode together, as in p1.rollout.points; of this and the "
        "next two the first is what figures show, each other one is priced beside it"
    )
    independent_rows: Count = Field(
        description="the same where candidates share no KV, as in p1.rollout.points with one each"
    )
    learner: Some[Literal["shared_prompt", "independent"]] = Field(
        ["shared_prompt", "independent"],
        description="the learner's batches: all completions of a prompt after it, or each after a "
        "copy",
    )
    recurrence: Some[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        [1, 4, 16], description="a prompt comes in every so many rounds"
    )
    bootstrap: Annotated[int, Field(ge=100, le=10**6)] = Field(
        1000, description="resamples of an interval"
    )


class RolloutPoint(Strict):
    """One call of the batched rollout; lengths and repeats are the section's where not given."""

    prompts: Count = Field(description="prompts of the call, each a document of the workload")
    candidates: Count = Field(description="candidates of each prompt")
    rows: Count = Field(description="the most candidates that decode together")
    context: PromptTokens = None
    prefix: Size = None
    generation: NewTokens = None
    repeats: Repeats = None


class Consistency(Strict):
    """P1-4.3: a rollout again, under other batch compositions, and by other means."""

    prompts: Count = Field(description="prompts, of different lengths")
    candidates: Count = Field(description="candidates of each prompt")
    prompt_tokens: PromptTokens = Field(description="tokens of the longest prompt")
    new_tokens: Count = Field(description="generated tokens a candidate")
    rows: Count = Field(description="candidates that decode together")
    tolerance: Positive = Field(
        1e-4, description="largest log-probability difference where bits may differ"
    )


class Rollout(Shared, Timed):
    """P1-4: continuous batching by phase, and against the read bandwidth of its batches."""

    context: PromptTokens
    prefix: Size = Field(
        0, description="of them shared by all prompts; above 0 the prefix cache is on"
    )
    generation: NewTokens = Field(description="generated tokens a candidate")
    points: Some[RolloutPoint] = Field(
        description="calls; the first is the operating point, which the loop runs at: Figure 2 and "
        "the rule on the prefill share look there"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values):
        """Every point with its own lengths and repeats, so that nobody else has to fill them in."""
        if not isinstance(values, dict):
            return values
        usual = {"prefix": 0} | values
        usual = {k: usual[k] for k in ("context", "prefix", "generation", "repeats") if k in usual}

        if isinstance(points := values.get("points"), list):
            filled = [usual | point if isinstance(point, dict) else point for point in points]
            return values | {"points": filled}
        return values

    @model_validator(mode="after")
    def _points_agree(self):
        seen = [point.model_dump(exclude={"repeats"}) for point in self.points]
        for n, point in enumerate(self.points):
            if point.prefix >= point.context:
                raise ValueError(
                    f"points: prefix {point.prefix} must be below context {point.context}"
                )
            if seen[n] in seen[:n]:
                raise ValueError(f"points: {seen[n]} stands twice: name every call once")
        return self


class LearnerPoint(Strict):
    """One micro-batch of the learner."""

    prompts: Count = Field(1, description="prompts of the micro-batch")
    candidates: Count = Field(8, description="completions of each")
    context: PromptTokens
    generation: NewTokens


class Learner(Timed):
    """P1-6.1: one LoRA update on completions, prompts shared by their candidates or not."""

    points: Some[LearnerPoint] = Field(description="micro-batches")
    frozen_fractions: Some[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.0, 0.5], description="first layers without adapters, as fractions of the depth"
    )
    learning_rate: Positive = Field(1e-4, description="AdamW's rate")


class Policy(Strict):
    """P1-5: a cache policy by name, with its own parameters (see ember.policies)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | Annotated[int, Field(ge=0, le=10**9)] | Fraction | None]

    name: str = Field(description="a policy known to the library, such as periodic_refresh")


class Decisions(Strict):
    """Thresholds of the rules that turn tables into verdicts."""

    low_prefill_share: Fraction = Field(
        0.3,
        description="P1-1.1: below this share of prefill, at the operating point of the rollout, "
        "the narrative shifts to accumulation over rounds x candidates and to sync and memory",
    )
    min_prefix_savings: Positive = Field(
        0.92, description="P1-2.3: time over operations saved by reusing half of the prompt"
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


class Lora(Timed):
    """P1-3: adapters, their alignment with PEFT and the latency of switching them."""

    rank: Count = Field(8, description="rank of the adapters")
    alpha: Positive = Field(16.0, description="scaling is alpha / rank")
    b_std: Positive = Field(0.02, description="standard deviation of B where it is drawn")
    train_steps: Size = Field(
        0, description="steps of the trained adapter; 0 or random weights: there is none"
    )
    train_tokens: PromptTokens = Field(128, description="tokens of its sequences, four a step")
    learning_rate: Positive = Field(1e-3, description="AdamW's rate for it")
    dtypes: Some[Literal["float32", "bfloat16", "float16"]] = Field(
        ["float32", "bfloat16", "float16"], description="number formats of the alignment"
    )
    prompts: Count = Field(description="prompts of the alignment")
    tokens: PromptTokens = Field(description="tokens of each")
    profiled: Some[Literal["init", "perturbed", "synthetic", "trained"]] = Field(
        ["perturbed", "trained"], description="adapters with profiles of layers and blocks"
    )
    layer_fractions: Some[Fraction] = Field(
        [0.0, 0.5, 1.0], description="layers whose weights and operators are checked"
    )
    freeze_fractions: Some[Fraction] = Field(
        [0.5, 2 / 3, 5 / 6], description="frozen first layers: 18, 24 and 30 of 36"
    )
    thresholds: Some[Positive] = Field(
        [0.1, 0.25, 0.5, 1.0], description="of the first layer to deviate by as much"
    )
    keeps: Some[Literal["device", "host", "none"]] = Field(
        ["device", "host", "none"], description="copies of the base whose latency is compared"
    )
    swaps: Count = Field(100, description="switches before the unload that must be exact")
    processes: Count = Field(3, description="fresh processes of each kind, for the first adapter")


class Architectures(Strict):
    """The decoder against Transformers' models, with small random weights."""

    presets: Some[str] = Field(
        description="published shapes; their features stay, their sizes shrink"
    )
    tokens: PromptTokens = 48
    new_tokens: Count = Field(32, description="greedily generated tokens")
    draws: Repeats = Field(2, description="times that weights and prompt are drawn")
    tolerance: Positive = Field(
        1e-4, description="largest absolute difference of a logit, key or value, in float32"
    )


class P1(Strict):
    """KV-cache policies for RL rollouts."""

    model: str = Field(description="name of the model the programme measures")
    corpus: str = Field("long", description="corpus that its prompts are cut from")
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
    learner: Learner
    consistency: Consistency
    policies: Some[Policy]
    decisions: Decisions = Decisions()

    @model_validator(mode="after")
    def _documents_suffice(self):
        batches = [*self.rollout.points, *self.learner.points]
        wanted = max([p.prompts for p in batches] + [self.consistency.prompts])
        if wanted > self.prefix.documents:
            raise ValueError(
                f"rollouts take {wanted} prompts, the workload has {self.prefix.documents} "
                "documents: raise prefix.documents or lower prompts"
            )
        return self

    def longest(self) -> dict[str, int]:
        """The most positions that a sequence takes in the measured model, by section."""
        of_the_model = [point for point in self.frameworks.points if not point.preset]
        return {
            "gates": self.gates.tokens + self.gates.new_tokens,
            "profile": max(self.profile.contexts) + max(self.profile.generations),
            "prefix": max(self.prefix.prompts) + 1,
            "speed": self.speed.prompt_tokens + self.speed.new_tokens,
            "roofline": max(self.roofline.contexts) + self.roofline.new_tokens,
            "pipeline": self.pipeline.context + self.pipeline.generation,
            "frameworks": max((p.prompt_tokens + p.new_tokens for p in of_the_model), default=0),
            "loading": self.loading.prompt_tokens + 1,
            "memory": self.memory.context,
            "rounds": max(point.context + point.generation for point in self.rounds.points),
            "lora": max(self.lora.tokens, self.lora.train_tokens if self.lora.train_steps else 0),
            "rollout": max(point.context + point.generation for point in self.rollout.points),
            "learner": max(point.context + point.generation for point in self.learner.points),
            "consistency": self.consistency.prompt_tokens + self.consistency.new_tokens,
        }
