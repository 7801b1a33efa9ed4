"""Low-bit, inference and training with 4-bit weights: a section for each study."""

from typing import Annotated

from pydantic import Field

from ember.config.shared import Count, Positive, Repeats, Some, Strict


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
    conversation: Conversation
    debug: Debug = Debug()
    guard: Guard = Guard()
