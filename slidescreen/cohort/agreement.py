"""How well the batch agrees with a morphologist or with flow cytometry, where the input CSV holds their fractions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from slidescreen.batch.inputs import FRACTION
from slidescreen.cohort.rows import SlideRow

POSITIVE: Final = 0.20
"""Share of blasts from which a slide counts as positive: the limit for acute leukaemia in the WHO classification."""
MIN_PAIRS: Final = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """One slide: the truth and what was found, in [0, 1], with the limits of the latter."""

    id: str
    file: str
    truth: float
    found: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Roc:
    """Slides with truth >= `POSITIVE` against the rest, by the fraction found. `points`: (false, true) positive rates."""

    auc: float
    positives: int
    negatives: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """One column of truth. `bias`: mean of found - truth; `limits`: bias -+ 1.96 standard deviations of the differences (Bland
    and Altman 1986). `roc` is None for atypical cells, and where all slides lie on one side."""

    column: str
    what: str
    pairs: tuple[Pair, ...]
    bias: float
    limits: tuple[float, float]
    roc: Roc | None
    without: int


def agreements(rows: Sequence[SlideRow]) -> list[Agreement]:
    """One per column that ends in blast_fraction or atypical_fraction and has at least three values."""
    columns = sorted({name for row in rows for name in row.columns if name.endswith(FRACTION)})
    found = [_agreement(name, what, rows) for name in columns for what in ("blast", "atypical") if f"{what}{FRACTION}" in name]
    return [each for each in found if each is not None]


def _agreement(column: str, what: str, rows: Sequence[SlideRow]) -> Agreement | None:
    told = [row for row in rows if row.columns.get(column)]
    pairs = []
    for row in told:
        f = row.blast if what == "blast" else row.atypical
        if f.fraction is not None and f.ci95 is not None:
            pairs.append(Pair(row.id, row.file, float(row.columns[column]), f.fraction, *f.ci95))
    if len(pairs) < MIN_PAIRS:
        return None
    differences = [p.found - p.truth for p in pairs]
    bias, spread = statistics.fmean(differences), 1.96 * statistics.stdev(differences)
    ranked = roc(pairs) if what == "blast" else None
    return Agreement(column, what, tuple(pairs), bias, (bias - spread, bias + spread), ranked, len(told) - len(pairs))


def roc(pairs: Sequence[Pair]) -> Roc | None:
    """The curve and the area under it, ties counted half; None where there are only positives or only negatives."""
    positive = [p.found for p in pairs if p.truth >= POSITIVE]
    negative = [p.found for p in pairs if p.truth < POSITIVE]
    if not positive or not negative:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    cuts = [math.inf, *sorted({p.found for p in pairs}, reverse=True)]
    points = [(sum(v >= c for v in negative) / len(negative), sum(v >= c for v in positive) / len(positive)) for c in cuts]
    return Roc(wins / len(positive) / len(negative), len(positive), len(negative), tuple(points))
