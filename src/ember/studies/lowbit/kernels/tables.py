"""Tables of packed weights' speed: products alone, and decoding with them."""

from ember.records import schema as s

_MACHINE = (
    s.number(
        "read_gb_s",
        "GB/s",
        "read bandwidth of the device: the best of sums and matrix-vector products before and "
        "after all else of the run",
    ),
    *s.MACHINE,
)
_PRODUCT = (
    s.text("format", "of the weight: dense, or a 4-bit format"),
    s.text(
        "path",
        "what multiplies: kernels (the backend's own, codes decoded in registers; of dense weights "
        "too), dequantise (to a dense weight, then torch's product), fp8 (converted, torch's "
        "scaled product), scaled_mm (FP4 matrix units), torch (its product of dense weights), "
        "bitsandbytes",
    ),
    s.text("product", "of a layer, stacked as it runs there; or head"),
    s.integer("rows", "", "rows of x"),
)
_SHAPE = (
    s.integer("out", "", "rows of the weight"),
    s.integer("inner", "", "columns of the weight"),
    s.integer("weight_bytes", "bytes", "codes and scales, or the dense weight"),
    s.integer("rotated_bytes", "bytes", "of copies of the weight that take turns", nullable=True),
    s.integer("cache_bytes", "bytes", "the device's last cache", nullable=True),
)
_ERRORS = (
    s.maybe(
        "kernel_error",
        "",
        "of the result, relative Frobenius norm, to the product of the same codes in float64",
    ),
    s.maybe(
        "quantisation_error", "", "of the dequantised weight, relative Frobenius norm, to the dense"
    ),
)

PRODUCT_RUNS = s.Schema(
    "packed_product_runs",
    "Products with packed and dense weights, over more copies than the last cache holds",
    (
        *_PRODUCT,
        s.integer("repeat", "", "recorded run", nullable=True),
        *_SHAPE,
        s.maybe("ms", "ms", "one product"),
        s.maybe("gb_s", "GB/s", "weight_bytes / ms"),
        *_ERRORS,
        s.maybe("tflops", "TFLOP/s", "products of square matrices in the same run, in dtype"),
        *_MACHINE,
        *s.OUTCOME,
    ),
    key=("format", "path", "product", "rows", "repeat"),
)

KERNELS = s.Schema(
    "lowbit_kernels",
    "Products with packed weights: time, bandwidth, and errors of kernel and of format apart",
    (
        *_PRODUCT,
        s.integer("n", "", "recorded runs"),
        *_SHAPE,
        *s.spread("ms", "ms", "one product", kind=s.maybe),
        s.maybe("gb_s_median", "GB/s", "weight_bytes / ms, median"),
        s.maybe("share", "fraction", "of read_gb_s; above 1 where a cache holds the copies"),
        s.maybe("speedup", "", "over the fastest path of dense weights"),
        *_ERRORS,
        s.maybe("tflops", "TFLOP/s", "products of square matrices in the same run, in dtype"),
        *_MACHINE,
        *s.OUTCOME,
    ),
    key=("format", "path", "product", "rows"),
)

_DECODE = (
    s.text("engine", "ember, or a peer's name in p1.frameworks.peers"),
    s.text("format", "of the layers' weights; q4_0: llama.cpp's, 32 weights share a float16 scale"),
    s.text("head", "the head's weight", values=("dense", "packed")),
    s.integer("rows", "", "candidates of the one prompt"),
)
_LENGTHS = (
    s.integer("prompt_tokens", "tokens", "prompt length"),
    s.integer("new_tokens", "tokens", "of each candidate"),
    s.text(
        "backend",
        "what ran: backends.select's choice, native required; of a peer its version",
        nullable=True,
    ),
    s.integer("weight_bytes", "bytes", "weights that a step reads", nullable=True),
    s.integer("kv_bytes", "bytes", "KV that a step reads at least"),
)
_PREFILL = "the prompt's forward; of a peer a call of one token"

DECODE_RUNS = s.Schema(
    "packed_decode_runs",
    "Generation with dense and packed weights in turns",
    (
        *_DECODE,
        s.integer("repeat", "", "recorded run", nullable=True),
        *_LENGTHS,
        s.maybe("prefill_ms", "ms", _PREFILL),
        s.maybe(
            "step_ms",
            "ms",
            "one step with sampling, mean over the run; of a peer what a call of all tokens takes "
            "longer than one of one token, by the tokens after the first",
        ),
        s.maybe("tokens_per_s", "tokens/s", "rows / step_ms"),
        *_MACHINE,
        *s.OUTCOME,
    ),
    key=("engine", "format", "head", "rows", "repeat"),
)

DECODE = s.Schema(
    "lowbit_decode",
    "Decoding with packed weights against dense ones of the same run, and against memory's limit",
    (
        *_DECODE,
        s.integer("n", "", "recorded runs"),
        *_LENGTHS,
        *s.spread("tokens_per_s", "tokens/s", "rows / step_ms", kind=s.maybe),
        s.maybe("speedup", "", "tokens_per_s_median over that of Ember's dense weights"),
        s.maybe("limit_tokens_per_s", "tokens/s", "weights and KV read at read_gb_s"),
        s.maybe("share", "fraction", "tokens_per_s_median / limit_tokens_per_s"),
        *s.spread("prefill_ms", "ms", _PREFILL, kind=s.maybe),
        s.maybe("prefill_ratio", "", "prefill_ms_median over that of Ember's dense weights"),
        *_MACHINE,
        *s.OUTCOME,
    ),
    key=("engine", "format", "head", "rows"),
)
