import pytest
import torch

from ember.lora.branch import LoraLinear
from ember.model.linear import bias_of, dense_weight, is_linear, weight_format


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_gives_its_own_parameters(bias):
    linear = torch.nn.Linear(4, 3, bias=bias)
    assert is_linear(linear)
    assert weight_format(linear) == "dense"
    assert dense_weight(linear) is linear.weight
    assert bias_of(linear) is linear.bias


def test_a_branch_is_linear_but_more_than_its_weight():
    branch = LoraLinear(torch.nn.Linear(4, 3))
    assert is_linear(branch)
    for ask in (weight_format, dense_weight, bias_of):
        with pytest.raises(TypeError, match=r"LoraLinear(.|\n)*Merge adapters"):
            ask(branch)


def test_what_is_not_linear_has_no_weight_to_give():
    assert not is_linear(torch.nn.Embedding(4, 3))
    with pytest.raises(TypeError, match="Embedding"):
        dense_weight(torch.nn.Embedding(4, 3))
