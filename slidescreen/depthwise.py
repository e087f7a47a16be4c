"""Depthwise convolution whose gradients are computed fast in bfloat16 on CPUs.

oneDNN has no fast kernel for two of them: the input's at a stride of 2, and the weights' of 5 x 5 kernels. Both are put
together from convolutions for which it has: 4 times as fast and more (`benchmarks/depthwise.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight


def depthwise(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """(n, c, h, w), already padded, and (c, 1, k, k) of the same dtype -> (n, c, (h - k) // stride + 1, ...), for training."""
    if x.device.type == "cpu" and (stride > 1 or weight.shape[-1] == 5):
        out: torch.Tensor = _Depthwise.apply(x, weight, stride)
        return out
    return functional.conv2d(x, weight, stride=stride, groups=weight.shape[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, stride=stride, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = _of_input(x, weight, grad, ctx.stride) if ctx.needs_input_grad[0] else None
        return of_x, _of_weight(x, weight, grad, ctx.stride) if ctx.needs_input_grad[1] else None, None


def _of_input(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int) -> torch.Tensor:
    """The gradient, with zeros where the stride skipped, convolved with the mirrored kernel."""
    n, c, height, width = x.shape
    kernel = weight.shape[-1]
    if stride > 1:
        size = (n, c, height - kernel + 1, width - kernel + 1)
        spread = torch.zeros(size, dtype=grad.dtype).contiguous(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return functional.conv2d(functional.pad(grad, (kernel - 1,) * 4), weight.flip(2, 3), groups=c)


def _of_weight(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int) -> torch.Tensor:
    """A 5 x 5 kernel's as four overlapping ones of 3 x 3; with a stride it is faster in float32."""
    if weight.shape[-1] == 3:
        return _weight_gradient(x, weight, grad, stride)
    if stride > 1:
        return _weight_gradient(x.float(), weight.float(), grad.float(), stride).to(weight.dtype)
    height, width = x.shape[2] - 2, x.shape[3] - 2
    out = torch.empty_like(weight)
    for i in (0, 2):
        for j in (0, 2):
            part = x[:, :, i : i + height, j : j + width].contiguous(memory_format=torch.channels_last)
            out[:, :, i : i + 3, j : j + 3] = _weight_gradient(part, weight[:, :, :3, :3], grad, 1)
    return out


def _weight_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int) -> torch.Tensor:
    found: torch.Tensor = conv2d_weight(x, list(weight.shape), grad, stride, groups=weight.shape[0])  # type: ignore[no-untyped-call]
    return found
