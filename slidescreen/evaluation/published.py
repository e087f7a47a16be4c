"""What Matek et al. 2019 report of their ResNeXt, five-fold cross-validation over 18,365 images: to hold results up against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class MeanSd:
    """Mean and standard deviation over the five folds. `sd` divides by the number of folds, not one less: a class found in
    one fold only is printed as 0.20 +- 0.40."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class PublishedClass:
    """One line of Table 1, which has no specificity."""

    precision: MeanSd
    sensitivity: MeanSd
    images: int


@dataclass(frozen=True, slots=True)
class PublishedDecision:
    """One of the two questions: AUC by image-wise and by patient-wise split, and the second examiner's two re-annotations as
    (sensitivity, specificity)."""

    auc: MeanSd
    auc_patient_split: float
    reannotations: tuple[tuple[float, float], tuple[float, float]]


def _line(precision: float, precision_sd: float, sensitivity: float, sensitivity_sd: float, images: int) -> PublishedClass:
    return PublishedClass(MeanSd(precision, precision_sd), MeanSd(sensitivity, sensitivity_sd), images)


MATURE: Final[dict[str, PublishedClass]] = {
    "NGS": _line(0.99, 0.00, 0.96, 0.01, 8484),
    "NGB": _line(0.25, 0.03, 0.59, 0.16, 109),
    "LYT": _line(0.96, 0.01, 0.95, 0.02, 3937),
    "LYA": _line(0.20, 0.40, 0.07, 0.13, 11),
    "MON": _line(0.90, 0.04, 0.90, 0.05, 1789),
    "EOS": _line(0.95, 0.04, 0.95, 0.01, 424),
    "BAS": _line(0.48, 0.16, 0.82, 0.07, 79),
}
IMMATURE: Final[dict[str, PublishedClass]] = {
    "MYO": _line(0.94, 0.01, 0.94, 0.02, 3268),
    "PMO": _line(0.63, 0.16, 0.54, 0.20, 70),
    "PMB": _line(0.45, 0.32, 0.41, 0.37, 18),
    "MYB": _line(0.46, 0.19, 0.43, 0.07, 42),
    "MMZ": _line(0.07, 0.13, 0.13, 0.27, 15),
    "MOB": _line(0.52, 0.30, 0.58, 0.26, 26),
    "EBO": _line(0.75, 0.20, 0.87, 0.09, 78),
    "KSC": _line(0.53, 0.28, 0.77, 0.20, 15),
}
TABLE_1: Final = MATURE | IMMATURE
"""In the order of the paper's Table 1, mature leukocytes first."""

DECISIONS: Final[dict[str, PublishedDecision]] = {
    "blast": PublishedDecision(MeanSd(0.992, 0.001), 0.992, ((0.957, 0.911), (0.907, 0.952))),
    "atypical": PublishedDecision(MeanSd(0.991, 0.002), 0.986, ((0.959, 0.910), (0.917, 0.953))),
}
REANNOTATED: Final = 1905
KAPPA: Final = (0.84, 0.87)
"""Cohen's kappa of the first and the second re-annotation against the gold standard."""
