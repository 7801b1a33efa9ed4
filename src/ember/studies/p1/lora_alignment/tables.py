"""Tables of the adapters: alignment with PEFT, latency of switching, exactness (P1-3)."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

DTYPES = ("float32", "bfloat16", "float16")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "all")
REFERENCES = ("peft_forward", "manual_merge")
BLOCKS = ("layer_input", "attn_out", "attn_residual", "post_attn_norm", "mlp_out", "layer_output")

_ADAPTER = Column(
    "adapter",
    "str",
    "",
    "init: as PEFT begins (B is zero); perturbed: that with a random B; synthetic: drawn and "
    "written here; trained: some steps on real text",
)
_TARGET = Column("target", "str", "", "projections that it changes: one, or all of q, k, v, o")
_DTYPE = Column("dtype", "str", "", "number format of weights and activations")
_LAYER = Column("layer", "int", "", "layer, from 0")
_NUM_LAYERS = Column("num_layers", "int", "layers", "layers of the model")
_MODEL = (
    Column("model", "str", "", "name of the model"),
    WEIGHTS,
    Column("device", "str", "", "where it ran"),
    EVIDENCE,
)


def _float(name: str, meaning: str, *, unit: str = "", nullable: bool = False) -> Column:
    return Column(name, "float", unit, meaning, nullable=nullable)


_DIFFERENCES = (
    _float("base_max_abs_diff", "largest difference to the reference without the adapter"),
    _float("lora_max_abs_diff", "largest difference to the reference with the adapter"),
    _float(
        "delta_max_abs_diff",
        "largest difference between the adapter's effects: (with - without) here and there",
    ),
    _float("effect_max_abs", "largest effect of the adapter in the reference, for scale"),
)

LORA_CASES = Schema(
    "lora_cases",
    "Logits with an adapter against Transformers with PEFT, same checkpoint and process",
    (
        _ADAPTER,
        _TARGET,
        _DTYPE,
        Column(
            "path",
            "str",
            "",
            "merged: in the weights; branch: beside them; two_stage: merged by two pipeline "
            "stages, each its own layers",
            values=("merged", "branch", "two_stage"),
        ),
        Column(
            "reference",
            "str",
            "",
            "peft_forward: PEFT's own forward; manual_merge: Transformers with W + s·B·A",
            values=REFERENCES,
        ),
        Column("prompts", "int", "", "prompts of the batch"),
        Column("tokens", "int", "tokens", "tokens of a prompt, logits of all are compared"),
        *_DIFFERENCES,
        Column(
            "errors",
            "list[float]",
            "",
            "root mean square difference to PEFT's float32 forward, of each prompt",
        ),
        Column("reference_errors", "list[float]", "", "the same of the reference itself"),
        _float("error_max", "largest difference to PEFT's float32 forward"),
        _float("reference_error_max", "the same of the reference itself"),
        *_MODEL,
    ),
    key=("adapter", "target", "dtype", "path", "reference"),
)

LORA_ALIGNMENT = Schema(
    "lora_alignment",
    "Alignment with PEFT: the worst case over q, k, v, o and all of them",
    (
        _ADAPTER,
        _DTYPE,
        Column("path", "str", "", "merged, branch or two_stage"),
        Column("reference", "str", "", "peft_forward or manual_merge"),
        Column("cases", "int", "", "targets compared"),
        *_DIFFERENCES,
        _float(
            "error_ratio",
            "median of error / reference's error, both to PEFT's float32 forward; half precision "
            "only",
            nullable=True,
        ),
        _float("error_ratio_low", "2.5 % bound, bootstrap over prompts", nullable=True),
        _float("error_ratio_high", "97.5 % bound", nullable=True),
        *_MODEL,
    ),
    key=("adapter", "dtype", "path", "reference"),
)

LORA_WEIGHTS = Schema(
    "lora_weights",
    "What merging did to single matrices, against s·B·A in float64",
    (
        _ADAPTER,
        _DTYPE,
        Column(
            "stage",
            "str",
            "",
            "whole: one decoder; 0 or 1: merged by that stage of two",
            values=("whole", "0", "1"),
        ),
        _LAYER,
        Column("projection", "str", "", "the matrix"),
        _float("delta_max_abs", "largest element of s·B·A"),
        _float("error_max_abs", "largest |(W_after - W_before) - s·B·A|"),
        _float(
            "error_max_ulp",
            "the same in units in the last place of the largest of |W|, |s| |B| |A|",
        ),
        *_MODEL,
    ),
    key=("adapter", "dtype", "stage", "layer", "projection"),
)

LORA_LAYERS = Schema(
    "lora_layers",
    "Output of each layer against Transformers with PEFT",
    (_ADAPTER, _DTYPE, _LAYER, _NUM_LAYERS, *_DIFFERENCES, *_MODEL),
    key=("adapter", "dtype", "layer"),
)

LORA_FREEZE = Schema(
    "lora_freeze",
    "Where deviations grow: first layers to cross thresholds, and adapters of the last layers only",
    (
        _ADAPTER,
        _DTYPE,
        Column("freeze", "int", "layers", "first layers without the adapter; 0: all have it"),
        _NUM_LAYERS,
        _float("threshold", "of delta_max_abs_diff of a layer's output"),
        Column("first_layer", "int", "", "first layer above it; none if empty", nullable=True),
        _float("prefix_effect_max", "largest effect of the adapter below the freeze; exact: 0"),
        _float("delta_max_abs_diff", "of the last layer's output"),
        _float("effect_max_abs", "of the last layer's output, in the reference"),
        *_MODEL,
    ),
    key=("adapter", "dtype", "freeze", "threshold"),
)

LORA_BLOCKS = Schema(
    "lora_blocks",
    "Parts of each layer against Transformers with PEFT; attn_residual = layer_input + attn_out",
    (
        _ADAPTER,
        _DTYPE,
        _LAYER,
        _NUM_LAYERS,
        Column("block", "str", "", "part of the layer", values=BLOCKS),
        *_DIFFERENCES,
        _float("delta_input_max", "attn_residual: delta difference of layer_input", nullable=True),
        _float("delta_attn_max", "attn_residual: delta difference of attn_out", nullable=True),
        _float("delta_residual_max", "attn_residual: delta difference of the sum", nullable=True),
        _float(
            "delta_gap",
            "attn_residual: largest part of it that the two do not explain: the addition's own "
            "rounding",
            nullable=True,
        ),
        *_MODEL,
    ),
    key=("adapter", "dtype", "layer", "block"),
)

LORA_SPOT = Schema(
    "lora_spot",
    "Single operators on their own input and on the reference's: where a deviation enters",
    (
        _ADAPTER,
        _DTYPE,
        _LAYER,
        Column("operator", "str", "", "operator", values=("norm", "gate", "up")),
        _float("input_max_abs_diff", "difference of the inputs"),
        _float("own_max_abs_diff", "difference of the outputs, each on its own input"),
        _float("same_max_abs_diff", "difference of the outputs on the reference's input"),
        Column(
            "enters",
            "str",
            "",
            "operator: at least half of the difference is there on the same input; input: it "
            "came with it; nowhere: the outputs are equal",
            values=("operator", "input", "nowhere"),
        ),
        *_MODEL,
    ),
    key=("adapter", "dtype", "layer", "operator"),
)

_WHO = (
    Column("implementation", "str", "", "ember or peft", values=("ember", "peft")),
    Column("keep", "str", "", "ember's copy of the base: device, host or none; none for PEFT"),
    Column(
        "operation",
        "str",
        "",
        "apply: base to adapter; replace: adapter to adapter; rollback: adapter to base; reload: "
        "read another from a folder and replace",
        values=("apply", "replace", "rollback", "reload"),
    ),
    Column(
        "phase",
        "str",
        "",
        "cold: the first of its kind, once (ember's first keep: the first of the process); steady: "
        "after warm-up",
        values=("cold", "steady"),
    ),
)
_SIZE = (
    Column("matrices", "int", "", "matrices that the adapter changes"),
    Column("passes", "int", "", "matrices passed over: twice as many for rollback and apply"),
    Column("rank", "int", "", "rank of the adapters"),
    Column("bytes", "int", "bytes", "adapted weights, read once and written once"),
    _float("copy_gb_s", "copy bandwidth of the device, in the same run", unit="GB/s"),
    _float("limit_ms", "bytes at copy_gb_s", unit="ms"),
)

LORA_LATENCY = Schema(
    "lora_latency",
    "Time of each switch of adapters",
    (
        *_WHO,
        Column("repeat", "int", "", "recorded run"),
        _float("ms", "from the call until the device is done", unit="ms", nullable=True),
        *_SIZE,
        _DTYPE,
        *_MODEL,
        STATUS,
        REASON,
    ),
    key=("implementation", "keep", "operation", "phase", "repeat"),
)

LORA_LATENCY_SUMMARY = Schema(
    "lora_latency_summary",
    "Time of switching adapters, against the memory's limit and PEFT",
    (
        *_WHO,
        Column("n", "int", "", "recorded runs"),
        _float("ms_median", "median", unit="ms", nullable=True),
        _float("ms_p10", "10th percentile", unit="ms", nullable=True),
        _float("ms_p90", "90th percentile", unit="ms", nullable=True),
        _float("ms_cv", "standard deviation / mean", nullable=True),
        _float("ratio_to_limit", "ms_median / limit_ms", nullable=True),
        _float(
            "speedup_over_peft",
            "PEFT's median for the same operation and phase / this one's",
            nullable=True,
        ),
        *_SIZE,
        _DTYPE,
        *_MODEL,
        STATUS,
        REASON,
    ),
    key=("implementation", "keep", "operation", "phase"),
)

LORA_EXACT = Schema(
    "lora_exact",
    "Weights after many swaps and an unload, against those before",
    (
        *_WHO[:2],
        Column("swaps", "int", "", "switches of adapters before the unload"),
        Column("exact", "bool", "", "whether all adapted weights are the base's, bit for bit"),
        _float("max_abs_diff", "largest difference to the base"),
        Column("kept_bytes", "int", "bytes", "memory that the copy of the base takes"),
        Column("adapted_bytes", "int", "bytes", "the adapted weights themselves"),
        Column("model_bytes", "int", "bytes", "all weights of the model"),
        _DTYPE,
        *_MODEL,
    ),
    key=("implementation", "keep"),
)

LORA_LOGITS = Schema(
    "lora_logits",
    "Logits of the next token with and without an adapter",
    (
        Column("position", "int", "", "token of the prompt whose next one is predicted, from 0"),
        Column("token", "int", "", "id of the vocabulary"),
        _float("base_logit", "without the adapter"),
        _float("adapted_logit", "with the adapter"),
        Column("adapter", "str", "", "the adapter's folder"),
        Column("adapter_hash", "str", "", "content hash, with the scale in it"),
        _float("lora_scale", "factor over the adapter's own scaling"),
        _DTYPE,
        *_MODEL,
    ),
    key=("position", "token"),
)
