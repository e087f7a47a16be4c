"""Time of the gradients of depthwise convolutions in bfloat16 on the CPU: torch's own beside ours, in one run, taking turns.

python benchmarks/depthwise.py [--batch 32] [--threads 1] [--json FILE]: the slow layers of efficientnet_lite0 at 160 px.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from telling import tell
from torch.nn import functional

from slidescreen.depthwise import depthwise

LAYERS = ((96, 80, 3, 2), (144, 40, 5, 2), (240, 20, 5, 1), (240, 20, 3, 2), (480, 10, 5, 1), (672, 10, 5, 2), (1152, 5, 5, 1))
"""Channels, px of the input, kernel, stride."""
ROUNDS = 4


def seconds(x: torch.Tensor, weight: torch.Tensor, stride: int, ours: bool) -> float:
    out = depthwise(x, weight, stride) if ours else functional.conv2d(x, weight, stride=stride, groups=len(weight))
    grad = torch.ones_like(out)
    began = time.perf_counter()
    torch.autograd.grad(out, (x, weight), grad)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = []
    for channels, px, kernel, stride in LAYERS:
        x = torch.randn(asked.batch, channels, px + kernel - 1, px + kernel - 1).bfloat16()
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, 1, kernel, kernel).bfloat16().requires_grad_()
        times = [(seconds(x, weight, stride, False), seconds(x, weight, stride, True)) for _ in range(ROUNDS)]
        plain, ours = (1e3 * min(column) for column in zip(*times, strict=True))
        layer = f"{channels} channels, {px} px, {kernel} x {kernel}, stride {stride}"
        rows.append({"layer": layer, "torch, ms": round(plain, 1), "ours, ms": round(ours, 1), "ratio": round(plain / ours, 1)})
    tell({"batch": asked.batch, "threads": asked.threads, "layers": rows}, asked.json)


if __name__ == "__main__":
    main()
