"""Low-bit, inference and training with 4-bit weights: a section for each study."""

from typing import Annotated, Literal

from pydantic import Field

from ember.config.shared import (
    Count,
    NewTokens,
    Positive,
    PromptTokens,
    Repeats,
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
    """L-7: how far memory overshoots the guard's limit, by the time between looks."""

    limit_mb: Count = Field(200, description="limit of the growing process, in MB (1e6 bytes)")
    rate_mb_s: Count = Field(400, description="how fast it grows, in MB/s")
    polls_s: Some[Positive] = Field([0.05, 0.2, 0.5], description="seconds between looks")
    repeats: Repeats = 3


class Lowbit(Strict):
    """NF4 and NVFP4: inference, training in a fraction of the memory, and the guard."""

    model: str = Field(description="name of the model the programme measures")
    kernels: Kernels
    quantise: Quantise = Quantise()
    conversation: Conversation
    debug: Debug = Debug()
    guard: Guard = Guard()
