from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from slidescreen.depthwise import depthwise


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [8, 9, 11])
def test_gradients_are_those_of_the_plain_convolution(kernel: int, stride: int, side: int) -> None:
    torch.manual_seed(side)
    x = torch.randn(2, 6, side, side + 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    plain = functional.conv2d(x, weight, stride=stride, groups=6)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, weight), grad)
    ours = depthwise(x, weight, stride)
    assert torch.equal(ours, plain)
    found = torch.autograd.grad(ours, (x, weight), grad)
    for a, b in zip(found, expected, strict=True):
        if stride > 1 and kernel == 5 and a.shape == weight.shape:  # computed in float32
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(a, b)


def test_a_gradient_nobody_needs_is_not_computed() -> None:
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 5, 5, requires_grad=True)
    depthwise(x, weight, 2).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
