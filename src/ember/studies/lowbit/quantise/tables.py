"""Tables of a model's weights in 4 bits."""

from ember.records import schema as s

QUANTISED = s.Schema(
    "lowbit_quantise",
    "Errors of a model's weights in 4-bit formats, by layer",
    (
        s.text("format", "number format"),
        s.text("layer", "name of the linear layer; head: also where it is the embedding"),
        s.integer("out", "", "rows of the weight"),
        s.integer("inner", "", "columns of the weight"),
        s.number("weight_std", "", "standard deviation of the dense weight"),
        s.number("kurtosis", "", "of the dense weight: 3 for normal ones"),
        s.number("relative_error", "", "Frobenius norm of the error over that of the weight"),
        s.number("max_error", "", "largest absolute error of a weight"),
        s.number("zeros", "fraction", "weights that become 0"),
        s.number("bits", "bits", "of a weight, scales included"),
        s.integer("packed_bytes", "bytes", "codes and scales"),
        *s.MEASURED_ON,
    ),
    key=("format", "layer"),
)
