"""Turned, mirrored and, where the recipe asks for it, rescaled, recoloured and blurred images, a batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from slidescreen.training.classifier.recipe import Recipe

BLUR_KERNEL: Final = (1.0, 4.0, 6.0, 4.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What is done to each of n images. `matrix` (n, 2, 3) float32: from the output's square [-1, 1] to the packed image's.
    The others are None where the recipe leaves them out: `light` (n, 2) factor of contrast and shift of brightness, `gain` and
    `density` (n, 3) per channel, `blur` (n,), `grey` (n,) bool."""

    matrix: NDArray[np.float32]
    light: NDArray[np.float32] | None
    gain: NDArray[np.float32] | None
    density: NDArray[np.float32] | None
    blur: NDArray[np.float32] | None
    grey: NDArray[np.bool_] | None


def draw_changes(rng: np.random.Generator, n: int, recipe: Recipe, shown: float) -> Changes:
    """Changes for n images: any angle, flips of both axes, and the recipe's own. `shown`: side of a patch as a share of the
    side of the packed image."""
    angle = rng.uniform(0, 2 * math.pi, n)
    flip_x, flip_y = (rng.choice((-1.0, 1.0), n) for _ in "xy")
    size = shown * np.exp(rng.uniform(-1, 1, n) * math.log1p(recipe.scale))
    matrix = np.zeros((n, 2, 3), np.float32)
    matrix[:, 0, 0], matrix[:, 0, 1] = size * np.cos(angle) * flip_x, -size * np.sin(angle) * flip_y
    matrix[:, 1, 0], matrix[:, 1, 1] = size * np.sin(angle) * flip_x, size * np.cos(angle) * flip_y

    def spread(shape: tuple[int, ...], most: float) -> NDArray[np.float32] | None:
        return rng.uniform(-most, most, shape).astype(np.float32) if most else None

    return Changes(
        matrix,
        light=spread((n, 2), recipe.colour),
        gain=spread((n, 3), recipe.colour / 2),
        density=spread((n, 3), recipe.stain),
        blur=spread((n,), recipe.blur),
        grey=rng.random(n) < recipe.grey if recipe.grey else None,
    )


def change(images: torch.Tensor, changes: Changes, patch_px: int) -> torch.Tensor:
    """(n, side, side, 3) uint8 -> (n, 3, patch_px, patch_px) float32 in [0, 1] on the same device.

    Beyond the packed image its mirror image is seen.
    """
    device = images.device
    x = images.permute(0, 3, 1, 2).float().div_(255)
    matrix = torch.from_numpy(changes.matrix).to(device, non_blocking=True)
    grid = functional.affine_grid(matrix, [len(images), 3, patch_px, patch_px], align_corners=False)
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if changes.blur is not None:
        weight = torch.from_numpy(changes.blur).to(device).view(-1, 1, 1, 1)
        x = x + weight * (_blurred(x) - x)
    if changes.density is not None:
        gain = 1 + torch.from_numpy(changes.density).to(device).view(-1, 3, 1, 1)
        x = x.clamp(1 / 255, 1) ** gain  # optical density is -log of x: times the gain
    if changes.gain is not None and changes.light is not None:
        light = torch.from_numpy(changes.light).to(device)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * (1 + light[:, :1, None, None]) + mean + light[:, 1:, None, None] / 2
        x = x * (1 + torch.from_numpy(changes.gain).to(device).view(-1, 3, 1, 1))
    if changes.grey is not None:
        x = torch.where(torch.from_numpy(changes.grey).to(device).view(-1, 1, 1, 1), x.mean(1, keepdim=True), x)
    return x.clamp(0, 1)


def normalise(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(n, 3, h, w) in [0, 1] -> as the network wants it, see `Recipe.normalisation`."""
    mean, std = recipe.normalisation
    return (x - mean) / std


def _blurred(x: torch.Tensor) -> torch.Tensor:
    line = torch.tensor(BLUR_KERNEL, device=x.device) / sum(BLUR_KERNEL)
    padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    rows = functional.conv2d(padded, line.view(1, 1, 5, 1).expand(3, 1, 5, 1), groups=3)
    return functional.conv2d(rows, line.view(1, 1, 1, 5).expand(3, 1, 1, 5), groups=3)
