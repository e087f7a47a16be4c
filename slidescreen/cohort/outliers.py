"""Slides that do not look like the others of their batch: stain, focus, scale, density of cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from slidescreen.cohort.rows import SlideRow

MIN_SLIDES: Final = 8
"""With fewer slides nothing is called an outlier."""
MAX_Z: Final = 3.5
"""Of the modified z-score by median and MAD; the limit of Iglewicz and Hoaglin (1993)."""
MAD_TO_SD: Final = 1.4826


@dataclass(frozen=True, slots=True)
class Measure:
    """What slides are compared by. `spread`: the least standard deviation taken, on the scale of `of`, so that a batch of
    nearly equal slides does not make outliers of trifles. `of` may be a logarithm; `shown` is what people read."""

    key: str
    name: str
    unit: str
    spread: float
    of: Callable[[SlideRow], float | None]
    shown: Callable[[SlideRow], float | None]


def _log2(value: float | None) -> float | None:
    return math.log2(value) if value else None


MEASURES: Final = (
    Measure("focus", "Focus", "", 0.10, lambda r: _log2(r.focus), lambda r: r.focus),
    Measure("stain", "Stain density", "OD", 0.10, lambda r: _log2(r.stain), lambda r: r.stain),
    Measure("tint", "Stain tint, green over red", "log2", 0.10, lambda r: r.tint, lambda r: r.tint),
    Measure("scale", "Scale", "µm/px", 0.02, lambda r: _log2(r.um_per_px), lambda r: r.um_per_px),
    Measure("density", "Leukocytes per mm²", "per mm²", 0.30, lambda r: _log2(r.per_mm2), lambda r: r.per_mm2),
)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A slide that lies apart by one measure. `z`: robust standard deviations from the median of the batch."""

    measure: Measure
    value: float
    median: float
    z: float

    @property
    def said(self) -> str:
        """ "focus low: 0.31, median of the batch 0.62"."""
        side = "high" if self.z > 0 else "low"
        unit = f" {self.measure.unit}" if self.measure.unit else ""
        return f"{self.measure.name} {side}: {self.value:.3g}{unit}, median of the batch {self.median:.3g}"


def find_outliers(rows: Sequence[SlideRow]) -> Mapping[str, tuple[Outlier, ...]]:
    """Outliers by slide id; empty for batches of fewer than eight slides."""
    found: dict[str, list[Outlier]] = {}
    for measure in MEASURES:
        values = {row.id: value for row in rows if (value := measure.of(row)) is not None}
        if len(values) < MIN_SLIDES:
            continue
        middle = statistics.median(values.values())
        spread = max(measure.spread, MAD_TO_SD * statistics.median(abs(v - middle) for v in values.values()))
        shown = {row.id: measure.shown(row) for row in rows}
        median = statistics.median(v for name, v in shown.items() if v is not None and name in values)
        for name, value in values.items():
            z = (value - middle) / spread
            if abs(z) > MAX_Z:
                found.setdefault(name, []).append(Outlier(measure, shown[name] or 0.0, median, z))
    return {name: tuple(sorted(each, key=lambda o: -abs(o.z))) for name, each in found.items()}
