"""Tables of other frameworks' streaming: losses by stream, times by run, and the comparison."""

from ember.records import schema as s

LABELS = ("stock", "order-fixed", "re-rotated", "eager", "fast")
_POINT = (
    s.text("framework", "name in streaming.peers.frameworks, or ember"),
    s.text("method", "as the framework calls it; of ember the point"),
    s.text(
        "label",
        "stock: as the framework does it, positions of the text (llama.cpp: in the cache); "
        "order-fixed: kept tokens in the text's order; re-rotated: positions in the cache; of "
        "ember what runs the layers",
        values=LABELS,
    ),
    s.integer("peak", "tokens", "the most tokens that a query may see"),
    s.integer("compression_interval", "tokens", "from one prune to the next (R)"),
)
_ABOUT = (
    s.integer("n_sink", "tokens", "first tokens that are always kept", nullable=True),
    s.text("arguments", "what else the method was given", nullable=True),
    s.text("version", "of the framework and what it rests on", nullable=True),
    s.text("attention", "implementation of attention, as the framework names it", nullable=True),
    s.text("equals", "point of this project that it equals by its definition", nullable=True),
)
_KEY = tuple(column.name for column in _POINT)

PEER_STREAMS = s.Schema(
    "streaming_peer_streams",
    "Losses of every token of every stream under other frameworks' eviction",
    (
        *_POINT,
        s.integer("stream", "", "number of the stream, as in the quality study"),
        *_ABOUT,
        s.Column("nll", "list[float]", "nats", "of each token after the first; none if not ok"),
        s.integer("visible_max", "tokens", "greatest KV length that a query saw", nullable=True),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=(*_KEY, "stream"),
)

PEER_TIMES = s.Schema(
    "streaming_peer_times",
    "Time of every token of one stream, frameworks in turns",
    (
        *_POINT,
        s.integer("repeat", "", "recorded round: each point runs once"),
        s.Column("token_ms", "list[float]", "ms", "of each token fed alone, by the wall clock"),
        s.integer("prefill", "tokens", "fed at once before them"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=(*_KEY, "repeat"),
)

STREAMING_PEERS = s.Schema(
    "streaming_peers",
    "Streaming in other frameworks: same model, tokens and peak visible length (S-1.7)",
    (
        *_POINT,
        *_ABOUT,
        s.text("corpus", "role of the corpus"),
        s.integer("streams", "streams", "that were scored"),
        s.integer("tokens", "tokens", "scored of each: those after the cache was first full"),
        s.maybe("nll", "nats/token", "mean loss"),
        s.maybe("ppl", "", "perplexity"),
        s.maybe("loss_above_r1", "nats/token", "above StreamingLLM's (R = 1) here, same peak"),
        s.maybe("low", "nats/token", "95 % interval by bootstrap over streams, lower end"),
        s.maybe("high", "nats/token", "upper end"),
        s.maybe("largest_difference", "nats", "of a token's loss to what it equals"),
        s.integer("visible_max", "tokens", "greatest KV length that a query saw", nullable=True),
        s.integer("n", "", "timed runs"),
        s.maybe("tpot_ms", "ms", "steady time per token, median over runs"),
        s.maybe("tpot_ms_min", "ms", "least run"),
        s.maybe("tpot_ms_max", "ms", "greatest run"),
        s.maybe("eager_ratio", "", "over this project's eager path with its R, same round; median"),
        s.maybe("fast_ratio", "", "over this project's fast path with its R, same round; median"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=_KEY,
)
