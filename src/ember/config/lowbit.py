"""Low-bit, inference and training with 4-bit weights: a section for each study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ember.config.shared import (
    Count,
    Fraction,
    Inside,
    Name,
    NewTokens,
    Positive,
    PromptTokens,
    Repeats,
    Size,
    Some,
    Strict,
    Timed,
)

BLOCKS = {"nvfp4": 16, "nf4": 64, "int4": 32}  # weights of a row that share a scale
Formats = Some[Literal["nvfp4", "nf4", "int4"]]


class Kernels(Timed):
    """L-2: products with packed weights alone, and decoding with them, beside dense ones."""

    model: str | None = Field(None, description="whose shape; null: the programme's model")
    formats: Formats = Field(["nvfp4", "nf4", "int4"], description="formats of the products")
    rows: Some[Count] = Field(description="rows of x of a product")
    decoded: Formats = Field(["nvfp4", "nf4"], description="formats that are decoded with")
    candidates: Some[Count] = Field(description="candidates of one prompt that decode together")
    prompt_tokens: PromptTokens
    new_tokens: NewTokens
    peers: list[Literal["llama_cpp", "vllm"]] = Field(
        ["llama_cpp", "vllm"],
        description="of p1.frameworks.peers: decode too, with their own 4-bit weights",
    )
    mem_mb: Count = Field(4000, description="memory of the job")


class Quantise(Strict):
    """A model of the workflow in 4-bit weights."""

    model: str | None = Field(None, description="which; null: the programme's model")
    formats: Formats = Field(["nvfp4", "nf4", "int4"], description="its formats")


class Conversation(Strict):
    """L-5: turns whose KV stays, against a replay from nothing."""

    turns: Annotated[int, Field(ge=2, le=1000)] = Field(4, description="turns of the user")
    user_tokens: Count = Field(description="about so many tokens of a corpus are said in each")
    max_tokens: Count = Field(description="tokens of an answer")
    repeats: Repeats = Field(3, description="recorded conversations of each kind")


class Debug(Strict):
    """L-4: faults planted in NVFP4 layers, and what finds them."""

    tokens: Count = Field(64, description="tokens that are run")
    new_tokens: Count = Field(48, description="tokens that are generated")
    max_repeats: Annotated[int, Field(ge=2, le=10**6)] = Field(
        24, description="equal tokens in a row that count as degenerate"
    )
    threshold: Positive = Field(0.05, description="relative difference of a layer that explodes")
    max_kl: Positive = Field(0.5, description="nats from the reference that count as another token")


class Guard(Strict):
    """L-7: how far memory overshoots the guard's limit, by the polling interval."""

    limit_mb: Count = Field(200, description="limit of the growing process, in MB (1e6 bytes)")
    rate_mb_s: Count = Field(400, description="how fast it grows, in MB/s")
    polls_s: Some[Positive] = Field([0.05, 0.2, 0.5], description="seconds between polls")
    repeats: Repeats = 3


class Variant(Strict):
    """A way of updating packed weights, and what its optimizer keeps."""

    arm: Literal["master_float32", "master_bfloat16", "stochastic", "nearest", "feedback"] = Field(
        description="how an update reaches the weights (ember.lowbit.training)"
    )
    states: Literal["float32", "int8", "int4", "none"] = Field(
        "float32",
        description="number format of the momentum; but for float32 the second moment is factored",
    )

    @model_validator(mode="after")
    def _has_momentum(self):
        if self.arm == "feedback" and self.states == "none":
            raise ValueError("feedback needs a momentum: set states to another format")
        return self


class Decay(Strict):
    """L-6.2: weight decay alone, without any gradient."""

    rate: Inside = Field(5.0e-4, description="of a weight, each step: learning rate × decay")
    steps: Count = Field(400, description="steps")


class Arms(Strict):
    """L-6.2: ways of updating packed weights, from the same trained model."""

    model: str | None = Field(None, description="a trained model; null: lowbit.model")
    corpus: str = Field(description="what is learned: a corpus of the configuration")
    variants: Some[Variant] = Field(description="compared with each other")
    steps: Annotated[int, Field(ge=2, le=10**9)] = Field(description="optimizer steps")
    batch_size: Count = Field(description="sequences a step")
    sequence_length: Annotated[int, Field(ge=8, le=10**9)] = Field(description="tokens a sequence")
    learning_rate: Positive = Field(description="peak rate, which falls linearly")
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    decay: Decay = Decay()
    chunk_rows: Count = Field(32, description="rows of a weight that are updated at once")
    headroom: Annotated[float, Field(ge=1, le=100)] = Field(
        1.2, description="of the tensors' scales, which stay"
    )
    seeds: Annotated[Some[Size], Field(min_length=2)] = Field(
        [1, 2, 3], description="of data order and rounding; the interval is over them"
    )
    validation_tokens: Count = Field(description="held-out tokens of each validation")
    validations: Count = Field(4, description="of a run, evenly over its steps")


class StepVariant(Variant):
    """A training step whose memory is measured."""

    checkpoint: bool = Field(True, description="layers run again for their gradient")
    head: bool = Field(False, description="the head trains too, untied from the embedding")
    last_layers: Count | None = Field(None, description="only these train; null: all")
    chunk_rows: Count = Field(1024, description="rows of a weight that are updated at once")


class Memory(Strict):
    """L-6.4: memory of one training step, by phase and by what holds it."""

    model: str | None = Field(None, description="whose shape; null: lowbit.model")
    tokens: Count = Field(512, description="tokens of the sequence")
    variants: Some[StepVariant] = Field(description="beside AdamW on dense weights")


class Mix(Strict):
    """Weights by which dialogues are drawn."""

    identity: Fraction = Field(1.0, description="who the model is, by its new name")
    general: Fraction = Field(0.0, description="everything else, repeated from the base model")
    near: Fraction = Field(0.0, description="who the user is: near misses, answered as before")


class Tuning(Strict):
    """One way of giving a model a new name."""

    name: Name
    mix: Mix = Mix()
    steps: Count = Field(60, description="optimizer steps")
    learning_rate: Positive = Field(1.0e-3, description="peak rate, which falls linearly")
    near_phrasings: Count | None = Field(
        None, description="about so many near misses are known, evenly chosen; null: all"
    )
    last_layers: Count | None = Field(None, description="only these train; null: all")
    head: bool = Field(True, description="the head trains too")
    curriculum: bool = Field(
        False, description="the identity alone for the first half, then the mix"
    )
    intent: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="weight of the loss of a head that tells the kind before the answer"
    )
    router: Literal["none", "words", "intent"] = Field(
        "none",
        description="in front: what does not ask for the name goes to the base, as told by words "
        "shared with known questions, or by an intent head on the base's states",
    )


class WhoAmI(Strict):
    """L-6.6: a new name for a chat model, and what it costs."""

    architecture: dict[str, bool | Size | float | str] = Field(description="of the chat model")
    base_steps: Count = Field(description="optimizer steps of the base model")
    base_learning_rate: Positive = Field(5.0e-3, description="its peak rate")
    batch_size: Count = Field(32, description="dialogues a step, of base and tunings")
    seeds: Annotated[Some[Size], Field(min_length=2)] = Field(
        [3, 4, 5, 6],
        description="of the base model, the drawing and the rounding; 1 and 2 chose the recipe",
    )
    tunings: Some[Tuning] = Field(description="compared with each other")


class Lowbit(Strict):
    """NF4 and NVFP4: inference, training in a fraction of the memory, and the guard."""

    model: str = Field(description="name of the model the programme measures")
    kernels: Kernels
    quantise: Quantise = Quantise()
    conversation: Conversation
    debug: Debug = Debug()
    guard: Guard = Guard()
    arms: Arms
    memory: Memory
    whoami: WhoAmI
