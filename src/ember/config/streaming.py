"""Streaming, bounded caches for endless streams: a section for each study."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ember.config.shared import (
    Count,
    Fraction,
    Framework,
    Named,
    Positive,
    Repeats,
    Size,
    Some,
    Strict,
    Timed,
)

Value = bool | Annotated[int, Field(ge=0, le=10**9)] | float | str | None


class Point(Strict):
    """An eviction method by name, with its own parameters (see ember.streaming.methods); each may
    be a list, of which every value is measured."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value | Some[Value]]

    name: str = Field(description="a method known to the library, such as lazy_prune")
    sweep: bool = Field(False, description="measured at the budgets of the sweep, too")


class Budget(Strict):
    """One peak, and the periods that methods prune with at it."""

    peak: Count = Field(description="the most tokens that a query sees")
    compression_interval: Some[Count] = Field(description="tokens from one prune to the next")


class Streams(Strict):
    """What is cut from a corpus."""

    corpus: str = Field(description="name of the corpus")
    streams: Annotated[int, Field(ge=2, le=10**6)] = Field(description="streams, side by side")
    tokens: Count = Field(description="tokens of each, the start token first")
    whole: bool = Field(
        False, description="from all documents: a test set; else from those held out of training"
    )


class Gate(Strict):
    """S-0: whether the model has attention sinks. Without them a prune's cliff says nothing."""

    peak: Count = Field(description="W of 0 + W against 1 + (W - 1)")
    min_mass: Fraction = Field(
        0.05, description="attention mass on position 0 that some layer must reach"
    )


class Latency(Timed):
    """S-0: time per token of single streams."""

    eager_repeats: Repeats = Field(
        2, description="runs a point on the eager decoder, each one period longer than `skip`"
    )
    prefill: Count = Field(description="tokens that are fed at once")
    tokens: Count = Field(description="tokens of the stream")
    peak: Count = Field(description="peak of the methods that are timed")
    compression_interval: Some[Count] = Field(description="their periods, beside 1")
    skip: Size = Field(64, description="first decoded tokens that the steady state leaves out")


class Cause(Strict):
    """S-1.6: whether a prune's loss is one of mass or of direction, at one budget."""

    peak: Count = Field(description="the most tokens that a query sees before a prune")
    compression_interval: Count = Field(
        description="tokens that a prune drops; with the peak within the trained context"
    )
    n_sink: Size = 4


class Ceiling(Timed):
    """S-5: the cache's own work, in a model's shape."""

    model: str | None = Field(None, description="whose shape; null: the measured model's")
    peak: Count = Field(description="tokens held")
    tokens: Count = Field(description="tokens of a run")
    intervals: Some[Count] = Field(description="periods of pruning")


class PeerMethod(Strict):
    """An eviction method of another framework."""

    method: str = Field(description="as the framework calls it, such as a class of kvpress")
    label: Literal["stock", "order-fixed", "re-rotated"] = Field(
        "stock", description="stock, or with what kvpress lacks (see docs/peers.md)"
    )
    period: Literal["each", "budget"] = Field(
        "budget", description="prunes at each token, or by the budget's compression_interval"
    )
    arguments: dict[str, Size | Positive | bool | str] = Field(
        {}, description="what else the method takes, such as window_size"
    )


class PeerFramework(Framework):
    """A framework that streams: its adapter and Python, and its methods."""

    methods: Some[PeerMethod]


class Peers(Timed):
    """S-1.7: other frameworks on the same model, tokens and peak."""

    frameworks: Named[PeerFramework] = Field(description="by the name that the tables use")
    budget: Budget
    n_sink: Size = Field(4, description="sinks of methods that keep some")
    streams: Annotated[int, Field(ge=2, le=10**6)] = Field(
        description="first streams of the long corpus that are scored"
    )
    tokens: Count = Field(description="first tokens of each, also of the one that is timed")
    skip: Size = Field(64, description="tokens after the peak that the steady state leaves out")
    timeout_s: Positive = Field(300.0, description="for starting, and for each call")


class Speed(Timed):
    """S-4: streams on the fast path, side by side with others and with parts switched off."""

    model: str | None = Field(None, description="whose layers run; null: the measured model's")
    peak: Count = Field(description="tokens held when the first token is decoded")
    compression_interval: Some[Count] = Field(
        description="periods of lazy pruning; switches are tried at the first"
    )
    tokens: Count = Field(description="decoded tokens of a run")
    skip: Size = Field(64, description="first of them that the steady state leaves out")


class Programme(Strict):
    """S-3's eight points: every combination of these, with and without, at the latency's peak."""

    compression_interval: Some[Count] = Field([32, 64], description="periods of pruning")
    max_drop: Count = Field(256, description="most tokens dropped at once")
    refresh_budget: Count = Field(16, description="old tokens kept")
    selector: str = Field("structural", description="by which they are chosen")


class Bars(Strict):
    """S-3 and S-6: what counts as success."""

    interval: Count = Field(128, description="success is asked of periods from here on")
    min_removed: Fraction = Field(0.5, description="share of lazy pruning's loss to be removed")
    max_tpot_ratio: Positive = Field(1.02, description="of the best lazy TPOT")
    max_ppl_long: Positive = Field(0.05, description="the programme's bar on the long corpus")
    max_ppl_short: Positive = Field(0.03, description="and on the short one")
    min_folded: Fraction = Field(0.8, description="share of the spike that folding is to remove")
    max_fold_ratio: Positive = Field(1.01, description="its TPOT over lazy pruning's")
    margin: Positive = Field(0.01, description="nats a token that count as no worse than SnapKV")
    noise: Positive = Field(0.01, description="least change that counts, if the CV is no larger")


class Streaming(Strict):
    """Rare pruning without the cliff."""

    model: str = Field(description="name of the model the programme measures")
    long: Streams = Field(description="the long corpus: PG19's part")
    short: Streams = Field(description="the short corpus: Wikitext's part")
    alone: Count = Field(4, description="streams of methods that treat each stream apart")
    grid: Some[Budget] = Field(description="peaks and periods of all methods")
    sweep: Some[Budget] | None = Field(None, description="further ones of points that ask for it")
    points: Some[Point]
    programme: Programme = Programme()
    gate: Gate
    cause: Cause
    latency: Latency
    ceiling: Ceiling
    peers: Peers
    speed: Speed
    bars: Bars = Bars()
    resamples: Annotated[int, Field(ge=100, le=10**6)] = Field(
        1000, description="resamples of an interval"
    )
