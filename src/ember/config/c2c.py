"""C2C, quantised cache-to-cache communication: a section for each study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ember.config.shared import (
    Count,
    Fraction,
    Inside,
    Named,
    Positive,
    Size,
    Some,
    Strict,
    Timed,
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Records = Annotated[int, Field(ge=2, le=10_000)]
Kinds = Annotated[int, Field(ge=1, le=10_000)]


class World(Strict):
    """The generated world (ember.c2c.world): what a passage holds, and who knows it."""

    records: Records = Field(20, description="records of a passage")
    fillers: Annotated[int, Field(ge=0, le=10**6)] = Field(18, description="tokens between them")
    entities: Kinds = Field(24, description="entities there are")
    entities_at_once: Kinds = Field(5, description="of which a passage names so many")
    relations: Kinds = Field(8, description="relations there are")
    values: Kinds = Field(32, description="values there are, and possible answers")
    filler_kinds: Kinds = Field(7, description="different fillers")
    shares: Annotated[list[Fraction], Field(min_length=4, max_length=4)] = Field(
        [0.5, 0.15, 0.2, 0.15],
        description="records known to the sharer, the receiver, both, neither; they add up to 1",
    )
    key_kept: Fraction = Field(
        0.25, description="share of key tokens that stay of what the receiver does not know"
    )
    no_context: Fraction = Field(
        0.1, description="passages of which the receiver's copy has nothing but masks"
    )

    @model_validator(mode="after")
    def _holds(self):
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("shares do not add up to 1: make them")
        if self.entities_at_once > self.entities:
            raise ValueError("entities_at_once is more than there are: lower it")
        if self.records > self.entities_at_once * self.relations:
            raise ValueError("records need as many keys: lower them, or raise entities_at_once")
        return self


class Trained(Strict):
    """A training in the world."""

    steps: Count = Field(description="optimizer steps, at most")
    batch_size: Count = Field(description="passages a step")
    questions: Count = Field(description="questions about each passage")
    learning_rate: Positive = Field(description="peak rate")
    warmup_steps: Size = Field(20, description="linear warm-up, in steps")


class Reader(Strict):
    """A model of the pair; its vocabulary is the world's."""

    architecture: dict[str, bool | Size | float | str] = Field(description="its fields")
    training: Trained


class Sharer(Reader):
    """The model whose cache is sent."""

    outliers: Positive = Field(
        16.0,
        description="one value channel and one key pair of each layer are so many times as large, "
        "undone in the next matrices; 1: none",
    )


class Fuser(Strict):
    """The fuser between the two."""

    hidden: Count = Field(description="width of its branches")
    rotated: bool = Field(False, description="keys are fused after rotation (published) or before")
    noise: Literal["logistic", "gumbel"] = Field("logistic", description="of gates in training")
    layer_map: Literal["last", "depth"] = Field("last", description="which layers meet")
    warm: Annotated[float, Field(ge=0, le=1000)] = Field(
        2.0, description="weight of the warm start at the first step"
    )
    warm_until: Inside = Field(0.45, description="share of the steps after which it is gone")
    hold: Fraction = Field(0.4, description="share of the steps with gates held open")
    training: Trained


class Evaluation(Strict):
    """Questions that points are measured on."""

    passages: Count = Field(description="passages of each split, each with its own items")
    questions: Count = Field(description="questions about each")
    batch_size: Count = Field(description="items at once")


class Speed(Strict):
    """What batches and compilation save."""

    items: Count = Field(description="items that are timed")
    batch_sizes: Some[Count] = Field(description="items at once; 1 is the reference")
    compile: Some[bool] = Field(description="whether the fuser is compiled")
    warmup: Size = 1
    repeats: Count


Scheme = Literal["fp16", "int8", "int4", "int2", "fp8", "nf4", "nvfp4", "mxfp4"]
Axis = Literal["layer", "head", "token", "channel", "group", "k_channel_v_token"]
RunMode = Literal["front", "back", "middle", "random"]
TopMode = Literal["vnorm_topk", "knorm_topk", "proj_vnorm_topk", "proj_vnorm_own_topk"]


LayerScheme = Scheme | Literal["none"]


class QuantConfig(Strict):
    """How what is sent is quantised (ember.formats.pairs); every combination is a point."""

    scheme: Some[Scheme] = Field(description="number format")
    axis: Some[Axis] = Field(["token"], description="which values share a scale")
    symmetric: Some[bool] = Field([True], description="asymmetric ones also send an offset")
    group: Count = Field(8, description="neighbouring values of a scale, of axis group")
    eps: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="smaller magnitudes are taken for 0"
    )
    collect_stats: bool = Field(False, description="tabulate the scales")
    quantize_target: Some[Literal["source", "base", "both"]] = Field(
        ["source"], description="what the sharer sends, what the fuser reads of the receiver, both"
    )


class TransferConfig(Strict):
    """Which tokens are sent (ember.c2c.select); every combination is a point."""

    token_select_mode: Some[RunMode | TopMode] = Field(description="how tokens are ranked")
    token_select_proportion: Some[Fraction] = Field(description="share of the tokens in scope")
    token_select_scope: Literal["prompt", "instruction_only", "all_context"] = "prompt"
    token_select_min_tokens: Size = Field(0, description="tokens that are sent at least")
    token_select_seed: Seed = Field(0, description="of mode random")
    sparse_fuse: bool = Field(True, description="only tokens that were sent are projected")
    scatter_fill: Literal["receiver_only", "zeros"] = Field(
        "receiver_only", description="what stands where nothing was sent"
    )
    index_dtype_bytes: Literal[2, 4] = Field(2, description="bytes of a token's place")
    include_scale_overhead: bool = Field(
        True, description="whether estimated bytes count scales and places"
    )


class Ptq(Strict):
    """C-M1, C-M2: schemes on axes."""

    grids: Some[QuantConfig] = Field(description="each a kv_quant_config")


class Length(Strict):
    """C-M3: how much of the instruction's cache."""

    kv_quant_config: QuantConfig
    kv_cache_proportion: Some[Fraction]
    kv_cache_order_mode: Some[RunMode]


class Override(Strict):
    """Layers in a scheme of their own."""

    layers: Some[Size] = Field(description="of the receiver, from 0")
    scheme: LayerScheme = Field(description="its scheme; none: not sent")


class LayerSchedule(Strict):
    """A scheme for each of the receiver's layers."""

    default: LayerScheme
    overrides: list[Override] = Field([], description="layers in other schemes")


class Layers(Strict):
    """C-M6: mixed precision by layer."""

    axis: Axis = Field("token", description="which values share a scale")
    last: Some[Count] = Field(description="so many last layers in the wide scheme")
    wide: Scheme = "fp16"
    narrow: Scheme = "int8"
    schemes: Some[LayerScheme] = Field(
        ["none", "int2", "int4", "int8", "fp16"], description="what the optimum may choose from"
    )
    budgets: Some[Inside] = Field(description="bytes of the optimum, as shares of FP16's")
    shuffles: Count = Field(description="random schedules beside each optimum")
    schedules: dict[str, LayerSchedule] = Field(
        {}, description="further ones, each a layer_schedule by its name"
    )


class Grid(Strict):
    """Points of every combination of both."""

    kv_quant_config: QuantConfig
    kv_transfer_config: TransferConfig


class Selective(Strict):
    """C-M8: selective transfer."""

    grids: Some[Grid]
    overlap: Inside = Field(0.25, description="proportion at which selectors are compared")
    stages: Some[Fraction] = Field(description="proportions at which stages are timed")
    warmup: Size = 1
    repeats: Count = Field(description="recorded runs of each stage")


class Points(Strict):
    """How points of the channel are measured and judged (C-M4, C-R)."""

    batch_size: Count = Field(description="items at once; those of one passage share a prefill")
    limit: Count | None = Field(None, description="items of a split at most; rows say it")
    strata: Some[str] = Field(
        ["sharer_only", "no_context", "all"],
        description="questions that accuracies are of; claims are about the first",
    )
    margin: Inside = Field(0.02, description="loss of accuracy that counts as none (non-inferior)")
    max_drift: Inside = Field(0.15, description="of estimated from measured bytes")
    difficulty: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        [0.8, 0.9],
        description="accuracy that FP16 is to have on the first stratum of the development split, "
        "least and greatest: where it is outside, decisions say so",
    )

    @model_validator(mode="after")
    def _ascends(self):
        if self.difficulty[0] >= self.difficulty[1]:
            raise ValueError("difficulty: the least is not below the greatest; swap them")
        return self


class Wire(Timed):
    """C-M11: blobs, a local socket, and the time of a message by bandwidth."""

    schemes: Some[Literal["fp16", "int8", "int4", "int2", "fp8", "nf4", "nvfp4", "mxfp4"]] = Field(
        ["fp16", "int8", "int4", "nf4", "int2"], description="formats, a scale a token"
    )
    published_tokens: Annotated[int, Field(ge=1, le=2**16)] = Field(
        128, description="of the payload in the published pair's shape, 12,288 bytes each at FP16"
    )
    big_mb: Annotated[float, Field(gt=0, le=1000)] = Field(
        description="megabytes at FP16 of the payload that is larger than caches"
    )
    text_tokens: Annotated[int, Field(ge=1, le=10**5)] = Field(
        64, description="tokens of the text that the channel is compared with"
    )
    text_bytes: Annotated[int, Field(ge=1, le=10**6)] = Field(300, description="its bytes")


class PublishedFuser(Strict):
    """A fuser as its authors publish it (ember.c2c.published)."""

    source: str = Field("nics-efc/C2C_Fuser", description="hub id, or the path of a local copy")
    folder: str = Field(
        "qwen3_0.6b+qwen2.5_0.5b_Fuser/final", description="folder in it that holds the fuser"
    )
    revision: str = Field("main", description="revision on the hub")


class RealPair(Strict):
    """Two named models and the fuser between them."""

    sharer: str = Field(description="name of a model (models)")
    receiver: str = Field(description="name of a model (models)")
    fuser: PublishedFuser | None = Field(None, description="null: only methods without a fuser")
    alignment: Literal["off", "first", "longest", "span_end"] | None = Field(
        None, description="of tokens; null: the one that the fuser was trained with"
    )
    fuse_template: bool | None = Field(
        None, description="whether template tokens are fused; null: with alignment off"
    )


class Benchmark(Strict):
    """Multiple-choice questions (ember.c2c.data)."""

    source: str = Field(description="hub id, or the path of a .parquet or .jsonl file")
    name: str | None = Field(None, description="configuration on the hub")
    split: str = Field("test", description="split on the hub")
    revision: str | None = Field(None, description="revision on the hub")
    items: Count | None = Field(None, description="questions with keys from A to D there must be")
    limit: Count | None = Field(None, description="only the first so many are asked")


class Real(Strict):
    """C-M0 on real models: named pairs and published questions."""

    pairs: Named[RealPair]
    benchmarks: Named[Benchmark]
    grids: list[Grid] = Field([], description="points of the channel that answer beside FP16")
    new_tokens: Count = Field(64, description="tokens of an answer, at most")
    message_tokens: Count = Field(256, description="tokens of a sharer's message, at most")
    batch_size: Count = Field(16, description="questions at once")
    template: str | None = Field(
        None, description="prompt with {question} and {choices}; null: ember.c2c.prompt's"
    )


class C2C(Strict):
    """Cache-to-cache communication."""

    seeds: Some[Seed] = Field(description="seeds of world, models and fuser: one pair each")
    world: World = World()
    sharer: Sharer
    receiver: Reader
    fuser: Fuser
    wire: Wire
    tuned_steps: Count = Field(description="steps of the receiver that is fine-tuned alone")
    self_steps: Count = Field(description="steps of the fuser from the receiver to itself")
    evaluation: Evaluation
    speed: Speed
    points: Points
    ptq: Ptq
    length: Length
    layers: Layers
    selection: Selective
    real: Real | None = Field(None, description="real models; null: none at this scale")
    resamples: Annotated[int, Field(ge=100, le=10**6)] = Field(
        2000, description="resamples of an interval"
    )
