"""Products with a model's matrices, on whatever way this machine's processor is best asked."""

import torch
from torch.nn.functional import linear

from shared.model.layers.layer_weights import Matrix


def test_a_bfloat16_product_is_as_exact_as_bfloat16_allows_and_keeps_its_dtype() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((33, 64), (48, 64), (48,)))

    product = Matrix(weight, bias)(x)

    assert product.dtype is torch.bfloat16
    reference = linear(x.double(), weight.double(), bias.double())
    assert (product.double() - reference).abs().max() <= reference.abs().max() * 2**-8
