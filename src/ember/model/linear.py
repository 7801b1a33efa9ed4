"""Linear layers by weight format: the one place that knows how a module keeps its matrix.

Whoever needs the weight of a projection asks here and never asks a module's class, so that
another format is a further entry and not a search through the code.
"""

from torch import nn

from ember.model.packed import PACKED, PackedLinear, PackedMatrix


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any format, also one with LoRA branches."""
    return isinstance(module, nn.Linear | PackedLinear)


def weight_format(module: nn.Module) -> str:
    """How a linear layer keeps its weight: "dense", a matrix (out, in) of floating-point numbers,
    or the name of a 4-bit format.

    Raises TypeError for a module that is more than its weight, such as one with LoRA branches.
    """
    if type(module) in PACKED.values():
        return module.format
    if type(module) is not nn.Linear:
        raise TypeError(
            f"a {type(module).__name__} is not a linear layer of a known weight format.\n"
            "Merge adapters into the weights first, or decode with the Decoder itself."
        )
    return "dense"


def dense_weight(module: nn.Module) -> nn.Parameter:
    """The weight (out, in) of a dense linear layer. Raises TypeError for any other module."""
    if (found := weight_format(module)) != "dense":
        raise TypeError(
            f"a weight of format {found} is not dense.\nLoad the model without packing it."
        )
    return module.weight


def packed_matrix(module: nn.Module, order: str) -> PackedMatrix:
    """The weight of a packed linear layer, whose codes are put in an order of
    `ember.model.packed.ORDERS`. Raises TypeError for any other module."""
    if (found := weight_format(module)) == "dense":
        raise TypeError(f"a {found} weight is not packed.\nQuantise all layers that run together.")
    module.lay(order)
    return module.matrix


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """The bias (out,) of a linear layer, None where it has none. Raises TypeError as above."""
    weight_format(module)
    return module.bias
