"""Tables of the adapters' alignment with PEFT (P1-3.4 to P1-3.7)."""

from ember.records import schema as s

REFERENCES = ("peft_forward", "manual_merge")
BLOCKS = ("layer_input", "attn_out", "attn_residual", "post_attn_norm", "mlp_out", "layer_output")

_ADAPTER = s.text("adapter", "init: B is zero; perturbed: B is random; synthetic; trained")
_TARGET = s.text("target", "projections that it changes: one, or all of q, k, v, o")
_DTYPE = s.text("dtype", "number format of weights and activations")
_LAYER = s.integer("layer", "", "layer, from 0")
_NUM_LAYERS = s.integer("num_layers", "layers", "layers of the model")
_MACHINE = (s.MODEL, s.WEIGHTS, s.DEVICE, s.EVIDENCE)

_DIFFERENCES = (
    s.number("base_max_abs_diff", "", "largest difference to the reference without the adapter"),
    s.number("lora_max_abs_diff", "", "largest difference to the reference with the adapter"),
    s.number("delta_max_abs_diff", "", "of the adapter's effects, with - without"),
    s.number("effect_max_abs", "", "largest effect of the adapter in the reference, for scale"),
)

_ERRORS = tuple(
    s.Column(name, "list[float]", "", f"of each prompt, {meaning}; none in float32")
    for name, meaning in (
        ("errors", "RMS to PEFT's float32 forward, with the adapter"),
        ("reference_errors", "the same of PEFT's own forward in this format"),
        ("base_errors", "as errors, without the adapter"),
        ("base_reference_errors", "the same of PEFT's own"),
    )
)

LORA_CASES = s.Schema(
    "lora_cases",
    "Logits with an adapter against Transformers with PEFT, same checkpoint and process",
    (
        _ADAPTER,
        _TARGET,
        _DTYPE,
        s.text("path", "how it is applied", values=("merged", "branch", "two_stage")),
        s.text("reference", "PEFT's forward, or Transformers with W + s·B·A", values=REFERENCES),
        s.integer("prompts", "", "prompts of the batch"),
        s.integer("tokens", "tokens", "tokens of a prompt, logits of all are compared"),
        *_DIFFERENCES,
        s.Column("errors", "list[float]", "", "of each prompt, RMS to PEFT's float32 forward"),
        s.Column("reference_errors", "list[float]", "", "the same of the reference itself"),
        s.number("error_max", "", "largest difference to PEFT's float32 forward"),
        s.number("reference_error_max", "", "the same of the reference itself"),
        *_MACHINE,
    ),
    key=("adapter", "target", "dtype", "path", "reference"),
)

LORA_ALIGNMENT = s.Schema(
    "lora_alignment",
    "Alignment with PEFT: the worst case over q, k, v, o and all of them",
    (
        _ADAPTER,
        _DTYPE,
        s.text("path", "merged, branch or two_stage"),
        s.text("reference", "peft_forward or manual_merge"),
        s.integer("cases", "", "targets compared"),
        *_DIFFERENCES,
        s.maybe("error_ratio", "", "median of error / reference_error; half precision"),
        s.maybe("error_ratio_low", "", "2.5 % bound, bootstrap over prompts"),
        s.maybe("error_ratio_high", "", "97.5 % bound"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "path", "reference"),
)

LORA_WEIGHTS = s.Schema(
    "lora_weights",
    "What merging did to single matrices, against s·B·A in float64",
    (
        _ADAPTER,
        _DTYPE,
        s.text("stage", "one decoder, or a stage of two", values=("whole", "0", "1")),
        _LAYER,
        s.text("projection", "the matrix"),
        s.number("delta_max_abs", "", "largest element of s·B·A"),
        s.number("error_max_abs", "", "largest |(W_after - W_before) - s·B·A|"),
        s.number("error_max_ulp", "", "the same in ulp of the largest of |W|, |s| |B| |A|"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "stage", "layer", "projection"),
)

LORA_LAYERS = s.Schema(
    "lora_layers",
    "Output of each layer against Transformers with PEFT",
    (_ADAPTER, _DTYPE, _LAYER, _NUM_LAYERS, *_DIFFERENCES, *_ERRORS, *_MACHINE),
    key=("adapter", "dtype", "layer"),
)

LORA_FREEZE = s.Schema(
    "lora_freeze",
    "Where deviations grow: first layers to cross thresholds, and adapters of the last layers only",
    (
        _ADAPTER,
        _DTYPE,
        s.integer("freeze", "layers", "first layers without the adapter; 0: all have it"),
        _NUM_LAYERS,
        s.number("threshold", "", "of delta_max_abs_diff of a layer's output"),
        s.integer("first_layer", "", "first layer above it; none if empty", nullable=True),
        s.number("prefix_effect_max", "", "largest effect below the freeze; exact: 0"),
        s.number("delta_max_abs_diff", "", "of the last layer's output"),
        s.number("effect_max_abs", "", "of the last layer's output, in the reference"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "freeze", "threshold"),
)

LORA_BLOCKS = s.Schema(
    "lora_blocks",
    "Parts of each layer against Transformers with PEFT; attn_residual = layer_input + attn_out",
    (
        _ADAPTER,
        _DTYPE,
        _LAYER,
        _NUM_LAYERS,
        s.text("block", "part of the layer", values=BLOCKS),
        *_DIFFERENCES,
        *_ERRORS,
        s.maybe("delta_input_max", "", "attn_residual: delta difference of layer_input"),
        s.maybe("delta_attn_max", "", "attn_residual: delta difference of attn_out"),
        s.maybe("delta_residual_max", "", "attn_residual: delta difference of the sum"),
        s.maybe("delta_gap", "", "attn_residual: the addition's own rounding"),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "layer", "block"),
)

LORA_SPOT = s.Schema(
    "lora_spot",
    "Single operators on their own input and on the reference's: where a deviation enters",
    (
        _ADAPTER,
        _DTYPE,
        _LAYER,
        s.text("operator", "operator", values=("norm", "gate", "up")),
        s.number("input_max_abs_diff", "", "difference of the inputs"),
        s.number("own_max_abs_diff", "", "difference of the outputs, each on its own input"),
        s.number("same_max_abs_diff", "", "difference of the outputs on the reference's input"),
        s.text("enters", "where most of it comes from", values=("operator", "input", "nowhere")),
        *_MACHINE,
    ),
    key=("adapter", "dtype", "layer", "operator"),
)
