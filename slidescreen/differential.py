"""Predictions -> cells with a status, and the differential with its limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from slidescreen.records import Differential, Fraction, Prediction, ScreenedCell, Status, Thresholds
from slidescreen.taxonomy import (
    ATYPICAL,
    BLAST,
    CODES,
    DISPLAY_ORDER,
    ERYTHROBLAST,
    NOT_LEUKOCYTE,
    SMUDGE,
    probability_of,
)

NO_LEUKOCYTE: Final = "looks like no leukocyte of the 15 classes"
NO_CLASS: Final = "no class likely enough"
NEAR_TIE: Final = "two classes nearly equally likely"
TURNS_DISAGREE: Final = "turned and mirrored pictures disagree"


@dataclass(frozen=True, slots=True)
class DifferentialSettings:
    """Probabilities and shares in [0, 1]. A cell is a blast (atypical) when P_blast (P_atypical) >= its threshold; where
    that is 0, the model's.

    Not counted: with `reject`, what the model refuses as no leukocyte of its classes; as unsure, a cell whose best class stays
    below `min_probability`, leads the next one by less than `min_margin`, or is the best of fewer than `min_agreement` of the
    orientations in which the cell was looked at.
    """

    blast_threshold: float = 0.0
    atypical_threshold: float = 0.0
    min_probability: float = 0.0
    min_margin: float = 0.05
    min_agreement: float = 0.5
    reject: bool = True


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided limits in [0, 1] of a proportion (Clopper and Pearson 1934); the limits that Ruemke tabled for
    differentials. Raises ValueError unless 0 <= count <= total and total > 0."""
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total} is no proportion")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, high


def screen_cells(
    predictions: Iterable[Prediction], classes: Sequence[str], settings: DifferentialSettings
) -> Iterator[ScreenedCell]:
    """Number the cells from 1 in the order in which they come and give each its status and label."""
    for number, prediction in enumerate(predictions, start=1):
        cell, p = prediction.cell, prediction.probabilities
        if p is None:
            yield ScreenedCell(number, cell, "rejected" if cell.refusal else "edge", "", None, None, None, cell.refusal)
            continue
        status, reason = judge(p, prediction.outlier, prediction.agreement, settings)
        yield ScreenedCell(
            id=number,
            cell=cell,
            status=status,
            label="" if status == "rejected" else classes[int(np.argmax(p))],
            probabilities=p,
            p_blast=probability_of(BLAST, p, classes),
            p_atypical=probability_of(ATYPICAL, p, classes),
            reason=reason,
            outlier=prediction.outlier,
            agreement=prediction.agreement,
        )


def judge(
    p: NDArray[np.float32], outlier: float | None, agreement: float | None, settings: DifferentialSettings
) -> tuple[Status, str]:
    """Status of a cell with probabilities (15,), and why it is not counted; see `records.Prediction` for the other two."""
    second, best = (float(v) for v in np.sort(p)[-2:])
    if settings.reject and outlier is not None and outlier > 0:
        return "rejected", NO_LEUKOCYTE
    if best < settings.min_probability:
        return "unsure", NO_CLASS
    if best - second < settings.min_margin:
        return "unsure", NEAR_TIE
    if agreement is not None and agreement < settings.min_agreement:
        return "unsure", TURNS_DISAGREE
    return "typed", ""


def count_cells(cells: Iterable[ScreenedCell], settings: DifferentialSettings, thresholds: Thresholds) -> Differential:
    """The differential over the typed cells. `thresholds`: the model's, for those that the settings leave open.

    Denominators (see taxonomy): leukocytes are all typed cells but smudge cells and erythroblasts; atypical cells are asked of
    all but smudge cells. A numerator only ever counts cells of its own denominator.
    """
    typed = [c for c in cells if c.status == "typed"]
    counts = {code: sum(c.label == code for c in typed) for code in CODES}
    leukocytes = [c for c in typed if c.label not in NOT_LEUKOCYTE]
    nucleated = [c for c in typed if c.label != SMUDGE]
    n = len(leukocytes)
    return Differential(
        counts=counts,
        leukocytes=n,
        percent={code: 100 * counts[code] / n if n else None for code in DISPLAY_ORDER},
        percent_ci95={code: _percent_limits(counts[code], n) for code in DISPLAY_ORDER},
        blast=_fraction([c.p_blast or 0.0 for c in leukocytes], settings.blast_threshold or thresholds.blast),
        atypical=_fraction([c.p_atypical or 0.0 for c in nucleated], settings.atypical_threshold or thresholds.atypical),
        nrbc_per_100_wbc=100 * counts[ERYTHROBLAST] / n if n else None,
        smudge_per_100_wbc=100 * counts[SMUDGE] / n if n else None,
    )


def _percent_limits(count: int, total: int) -> tuple[float, float] | None:
    if not total:
        return None
    low, high = clopper_pearson(count, total)
    return 100 * low, 100 * high


def _fraction(probabilities: list[float], threshold: float) -> Fraction:
    total = len(probabilities)
    count = sum(p >= threshold for p in probabilities)
    if not total:
        return Fraction(0, 0, threshold, None, None, None)
    return Fraction(count, total, threshold, count / total, clopper_pearson(count, total), sum(probabilities) / total)
