"""Tables of the adapters' alignment with PEFT (P1-3.4 to P1-3.7)."""

from ember.records.schema import (
    DEVICE,
    EVIDENCE,
    MODEL,
    WEIGHTS,
    Column,
    Schema,
    integer,
    maybe,
    number,
    text,
)

DTYPES = ("float32", "bfloat16", "float16")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "all")
REFERENCES = ("peft_forward", "manual_merge")
BLOCKS = ("layer_input", "attn_out", "attn_residual", "post_attn_norm", "mlp_out", "layer_output")

_ADAPTER = text(
    "adapter",
    "init: as PEFT begins (B is zero); perturbed: that with a random B; "
    "synthetic: drawn and written here; trained: some steps on real text",
)
_TARGET = text("target", "projections that it changes: one, or all of q, k, v, o")
_DTYPE = text("dtype", "number format of weights and activations")
_LAYER = integer("layer", "", "layer, from 0")
_NUM_LAYERS = integer("num_layers", "layers", "layers of the model")
_MACHINE = (MODEL, WEIGHTS, DEVICE, EVIDENCE)


_DIFFERENCES = (
    number("base_max_abs_diff", "", "largest difference to the reference without the adapter"),
    number("lora_max_abs_diff", "", "largest difference to the reference with the adapter"),
    number(
        "delta_max_abs_diff",
        "",
        "largest difference between the adapter's effects: (with - without) here and there",
    ),
    number("effect_max_abs", "", "largest effect of the adapter in the reference, for scale"),
)

LORA_CASES = Schema(
    "lora_cases",
    "Logits with an adapter against Transformers with PEFT, same checkpoint and process",
    (
        _ADAPTER,
        _TARGET,
        _DTYPE,
        text(
            "path",
            "merged: in the weights; branch: beside them; two_stage: merged by two "
            "pipeline stages, each its own layers",
            values=("merged", "branch", "two_stage"),
        ),
        text(
            "reference",
            "peft_forward: PEFT's own forward; manual_merge: Transformers with W + s·B·A",
            values=REFERENCES,
        ),
        integer("prompts", "", "prompts of the batch"),
        integer("tokens", "tokens", "tokens of a prompt, logits of all are compared"),
        *_DIFFERENCES,
        Column("errors", "list[float]", "", "of each prompt, RMS to PEFT's float32 forward"),
        Column("reference_errors", "list[float]", "", "the same of the reference itself"),
        number("error_max", "", "largest difference to PEFT's float32 forward"),
        number("reference_error_max", "", "the same of the reference itself"),
        *_MACHINE,
    ),
    key=("adapter", "target", "dtype", "path", "reference"),
)

LORA_ALIGNMENT = Schema(
    "lora_alignment",
    "Alignment with PEFT: the worst case over q, k, v, o and all of them",
    (
        _ADAPTER,
        _DTYPE,
        text("path", "merged, branch or two_stage"),
        text("reference", "peft_forward or manual_merge"),
        integer("cases", "", "targets compared"),
        *_DIFFERENCES,
        maybe(
            "error_ratio",
            "",
            "median of error / reference's error, both to PEFT's float32 forward; half "
            "precision only",
        ),
        maybe("error_ratio_low", "", "2.5 % bound, bootstrap over prompts"),
        maybe("error_ratio_high", "", "97.5 % bound"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "path", "reference"),
)

LORA_WEIGHTS = Schema(
    "lora_weights",
    "What merging did to single matrices, against s·B·A in float64",
    (
        _ADAPTER,
        _DTYPE,
        text(
            "stage",
            "whole: one decoder; 0 or 1: merged by that stage of two",
            values=("whole", "0", "1"),
        ),
        _LAYER,
        text("projection", "the matrix"),
        number("delta_max_abs", "", "largest element of s·B·A"),
        number("error_max_abs", "", "largest |(W_after - W_before) - s·B·A|"),
        number("error_max_ulp", "", "the same in ulp of the largest of |W|, |s| |B| |A|"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "stage", "layer", "projection"),
)

LORA_LAYERS = Schema(
    "lora_layers",
    "Output of each layer against Transformers with PEFT",
    (_ADAPTER, _DTYPE, _LAYER, _NUM_LAYERS, *_DIFFERENCES, *_MACHINE),
    key=("adapter", "dtype", "layer"),
)

LORA_FREEZE = Schema(
    "lora_freeze",
    "Where deviations grow: first layers to cross thresholds, and adapters of the last layers only",
    (
        _ADAPTER,
        _DTYPE,
        integer("freeze", "layers", "first layers without the adapter; 0: all have it"),
        _NUM_LAYERS,
        number("threshold", "", "of delta_max_abs_diff of a layer's output"),
        integer("first_layer", "", "first layer above it; none if empty", nullable=True),
        number("prefix_effect_max", "", "largest effect of the adapter below the freeze; exact: 0"),
        number("delta_max_abs_diff", "", "of the last layer's output"),
        number("effect_max_abs", "", "of the last layer's output, in the reference"),
        *_MACHINE,
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
        text("block", "part of the layer", values=BLOCKS),
        *_DIFFERENCES,
        maybe("delta_input_max", "", "attn_residual: delta difference of layer_input"),
        maybe("delta_attn_max", "", "attn_residual: delta difference of attn_out"),
        maybe("delta_residual_max", "", "attn_residual: delta difference of the sum"),
        maybe(
            "delta_gap",
            "",
            "attn_residual: largest part of it that the two do not explain: the "
            "addition's own rounding",
        ),
        *_MACHINE,
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
        text("operator", "operator", values=("norm", "gate", "up")),
        number("input_max_abs_diff", "", "difference of the inputs"),
        number("own_max_abs_diff", "", "difference of the outputs, each on its own input"),
        number("same_max_abs_diff", "", "difference of the outputs on the reference's input"),
        text(
            "enters",
            "operator: at least half of the difference is there on the same input; input:"
            " it came with it; nowhere: the outputs are equal",
            values=("operator", "input", "nowhere"),
        ),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "layer", "operator"),
)
