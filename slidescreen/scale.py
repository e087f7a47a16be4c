"""um per px of level 0: from the user, else from the file. Never guessed, never inferred from a magnification."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from slidescreen.errors import ScaleError
from slidescreen.records import Scale
from slidescreen.slide import StatedScale

MIN_UM_PER_PX: Final = 0.03
MAX_UM_PER_PX: Final = 1.0
"""Finer than 0.03 no light microscope resolves; coarser than 1.0 a leukocyte is a dozen px."""
MAX_ANISOTROPY: Final = 0.05

_OPTION: Final = "--um-per-px X (um per level-0 pixel, for instance --um-per-px 0.0725)"


def resolve_scale(path: Path, stated: StatedScale | None, um_per_px: float | None) -> Scale:
    """The scale of level 0. `um_per_px` (the user's word) wins over what the file states.

    Raises ScaleError when neither is there, when x and y differ by more than 5 %, or outside 0.03-1.0 um/px.
    """
    if um_per_px is not None:
        return Scale(_plausible(path, um_per_px, "--um-per-px"), "--um-per-px")
    if stated is None:
        raise ScaleError(f"{path}: the file states no um/px; add {_OPTION}")
    for side in (stated.x, stated.y):
        _plausible(path, side, stated.source)
    mean = math.sqrt(stated.x * stated.y)
    if abs(stated.x - stated.y) > MAX_ANISOTROPY * mean:
        raise ScaleError(
            f"{path}: x and y differ by more than 5 % ({stated.x:.4g} and {stated.y:.4g} um/px, from {stated.source}); "
            f"add {_OPTION}"
        )
    return Scale(mean, stated.source)


def _plausible(path: Path, um_per_px: float, source: str) -> float:
    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise ScaleError(
            f"{path}: {um_per_px:.6g} um/px read from {source} is outside {MIN_UM_PER_PX}-{MAX_UM_PER_PX}; "
            f"add the true {_OPTION}"
        )
    return um_per_px
