"""um per px of level 0: from the user, else from the file, checked against the red cells.

Never inferred from a magnification. What the red cells say is used only where the user asks for it with --um-per-px auto.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from slidescreen.errors import ScaleError
from slidescreen.records import RulerReading, Scale, ScaleCheck
from slidescreen.slide import StatedScale

MIN_UM_PER_PX: Final = 0.03
MAX_UM_PER_PX: Final = 1.0
"""Finer than 0.03 no light microscope resolves; coarser than 1.0 a leukocyte is a dozen px."""
MAX_ANISOTROPY: Final = 0.05
MAX_TAG_DISAGREEMENT: Final = 0.05
"""Of two tags of one file: they are copies of one number, or one of them is wrong."""
MAX_DISAGREEMENT: Final = 0.25
"""Of the scale and the red cells: macrocytes and microcytes differ by less from the healthy 7.5 um."""
CAUSE_TOLERANCE: Final = 0.3
CAUSES: Final = (
    (0.1, "the stated value is 10 times too small, a unit mistaken by a factor of 10"),
    (0.25, "the stated value is 4 times too small, that of another objective (x40 in place of x10)"),
    (0.5, "the stated value is 2 times too small, that of another objective, or the scan was exported at half size"),
    (2.0, "the stated value is 2 times too large, that of another objective (x50 in place of x100)"),
    (2.5, "the stated value is 2.5 times too large, that of another objective (x40 in place of x100)"),
    (5.0, "the stated value is 5 times too large, that of another objective (x20 in place of x100)"),
    (10.0, "the stated value is 10 times too large, a unit mistaken by a factor of 10"),
)
"""Stated over true scale -> what makes scales wrong by that much."""

_OPTION: Final = "--um-per-px X (um per level-0 pixel, for instance --um-per-px 0.0725)"


def resolve_scale(path: Path, stated: StatedScale | None, um_per_px: float | None, others: Sequence[StatedScale] = ()) -> Scale:
    """The scale of level 0. `um_per_px` (the user's word) wins over what the file states. `others`: what
    else it states, in other tags.

    Raises ScaleError when there is none, when two tags or x and y differ by more than 5 %, or outside 0.03-1.0 um/px.
    """
    if um_per_px is not None:
        return Scale(_plausible(path, um_per_px, "--um-per-px"), "--um-per-px")
    if stated is None:
        raise ScaleError(f"{path}: the file states no um/px; add {_OPTION}")
    _require_agreement(path, stated, others)
    for side in (stated.x, stated.y):
        _plausible(path, side, stated.source)
    mean = math.sqrt(stated.x * stated.y)
    if abs(stated.x - stated.y) > MAX_ANISOTROPY * mean:
        raise ScaleError(
            f"{path}: x and y differ by more than 5 % ({stated.x:.4g} and {stated.y:.4g} um/px, from {stated.source}); "
            f"add {_OPTION}"
        )
    return Scale(mean, stated.source)


def _require_agreement(path: Path, stated: StatedScale, others: Sequence[StatedScale]) -> None:
    for other in others:
        off = max(abs(math.log(other.x / stated.x)), abs(math.log(other.y / stated.y)))
        if off > math.log(1 + MAX_TAG_DISAGREEMENT):
            raise ScaleError(
                f"{path}: the file states {stated.x:.4g} um/px ({stated.source}) and {other.x:.4g} um/px ({other.source}), "
                f"which differ by more than 5 %; add the true {_OPTION}"
            )


def _plausible(path: Path, um_per_px: float, source: str) -> float:
    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise ScaleError(
            f"{path}: {um_per_px:.6g} um/px read from {source} is outside {MIN_UM_PER_PX}-{MAX_UM_PER_PX}; "
            f"add the true {_OPTION}"
        )
    return um_per_px


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """`trust`: use the stated scale even where the red cells disagree (--trust-scale)."""

    trust: bool = False


Measure = Callable[[], RulerReading | None]
"""Measures the red cells of the scan."""


def settle_scale(
    path: Path,
    stated: StatedScale | None,
    wanted: float | Literal["auto"] | None,
    measure: Measure,
    others: Sequence[StatedScale] = (),
) -> Scale:
    """The scale to screen at, not yet checked; `measure` is called only where it is needed: for "auto" and in errors.

    Raises ScaleError when there is none, with what the red cells say as a proposal.
    """
    if wanted == "auto":
        reading = measure()
        if reading is None:
            raise ScaleError(f"{path}: too few isolated red cells to estimate um/px from; add {_OPTION}")
        estimate = float(f"{reading.um_per_px:.4g}")
        return Scale(_plausible(path, estimate, "red cells"), f"estimated from {reading.cells} red cells")
    try:
        return resolve_scale(path, stated, wanted, others)
    except ScaleError as error:
        reading = measure() if wanted is None else None
        if reading is None:
            raise
        cause = _cause(math.sqrt(stated.x * stated.y) / reading.um_per_px) if stated and min(stated.x, stated.y) > 0 else ""
        raise ScaleError(f"{error} ({_said(reading)}{f'; likely {cause}' if cause else ''}: {_proposal(reading)})") from error


def check_scale(path: Path, scale: Scale, reading: RulerReading | None, *, trusted: bool, estimated: bool) -> ScaleCheck:
    """Compare the scale in use with the red cells. `trusted`: the user gave it or vouches for it. `estimated`: it is theirs.

    Raises ScaleError, naming the likely cause, when they differ by more than 25 % and it is not trusted.
    """
    if reading is None:
        return ScaleCheck("not_measurable")
    if estimated:
        return ScaleCheck("estimated", reading)
    ratio = scale.um_per_px / reading.um_per_px
    if max(ratio, 1 / ratio) <= 1 + MAX_DISAGREEMENT:
        return ScaleCheck("verified", reading)
    if trusted:
        return ScaleCheck("overridden", reading)
    cause = _cause(ratio)
    raise ScaleError(
        f"{path}: the file states {scale.um_per_px:.4g} um/px ({scale.source}), but {_said(reading)}"
        f"{f'; likely {cause}' if cause else ''}: {_proposal(reading)}, or --trust-scale to keep the stated value"
    )


def _said(reading: RulerReading) -> str:
    return f"its {reading.cells} red cells say {reading.um_per_px:.3g} ({reading.low:.3g}-{reading.high:.3g}) um/px"


def _proposal(reading: RulerReading) -> str:
    return f"add --um-per-px {reading.um_per_px:.3g} or the true value, or --um-per-px auto to use the red cells"


def _cause(ratio: float) -> str:
    """What makes a stated scale wrong by `ratio`, or "" where nothing known does."""
    factor, cause = min(CAUSES, key=lambda c: abs(math.log(ratio / c[0])))
    return cause if abs(math.log(ratio / factor)) < CAUSE_TOLERANCE else ""
