"""The records of an evaluation: what is written as JSON and tables, drawn and shown. None stands for what is not defined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slidescreen.evaluation.metrics import Calibration, Floats, RocCurve
from slidescreen.evaluation.predictions import InputFile

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure over the images of all folds together, its 95 % bootstrap interval, and fold by fold.

    `mean` and `sd` are over the folds in which it is defined; `sd` divides by their number, as in the paper's tables, and is
    None for fewer than two. The `value` of an AUC is the mean of the folds' AUCs: scores of different models are not ranked
    together.
    """

    value: float | None
    ci95: Interval | None
    folds: tuple[float | None, ...]
    mean: float | None
    sd: float | None

    @property
    def defined(self) -> int:
        """Number of folds in which it is defined."""
        return sum(v is not None for v in self.folds)


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `total` images with the exact 95 % (Clopper-Pearson) limits, which take the images for independent."""

    count: int
    total: int
    value: float | None
    limits: Interval | None


@dataclass(frozen=True, slots=True)
class SensSpec:
    """Sensitivity and specificity of a yes-or-no decision."""

    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One of the 15 classes; `fold_images` are its images per fold, `predicted` how many images were named so."""

    code: str
    images: int
    predicted: int
    fold_images: tuple[int, ...]
    precision: Estimate
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: its images, their patients, and how many of the 15 classes they show."""

    number: int
    images: int
    patients: int
    classes: int


@dataclass(frozen=True, slots=True, eq=False)
class MeanCurve:
    """ROC curves averaged over the folds: (m,) mean and sd (None for one fold) of the sensitivity at each `fpr`."""

    fpr: Floats
    tpr: Floats
    sd: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """One of the two questions, "blast" or "atypical", answered yes where the probability reaches `threshold`.

    `curves`: fold -> ROC curve, only folds with both kinds of images; `mean_curve` None where there is none.
    """

    key: str
    codes: tuple[str, ...]
    threshold: float
    positives: int
    negatives: int
    auc: Estimate
    network: SensSpec
    sensitivity: Estimate
    specificity: Estimate
    curves: Mapping[int, RocCurve]
    mean_curve: MeanCurve | None


@dataclass(frozen=True, slots=True)
class Reannotation:
    """What a human (1: first, 2: second time) said of images shown again, against the gold standard, beside the network on the
    same images. `human` and `network`: by decision. `kappa_first`: against the first re-annotation on the `both` images that
    have both; None for the first."""

    number: int
    images: int
    kappa_human: Estimate
    kappa_network: Estimate
    human: Mapping[str, SensSpec]
    network: Mapping[str, SensSpec]
    both: int
    kappa_first: Estimate | None


@dataclass(frozen=True, slots=True)
class SourceResult:
    """The images of a source. `frequent_classes`: those with at least 30 of its images, over which
    `frequent_balanced_accuracy` goes. Blasts: images that are MYO or MOB by gold standard, and those the network calls a
    blast."""

    source: str
    images: int
    patients: int
    classes: int
    balanced_accuracy: Estimate
    frequent_classes: tuple[str, ...]
    frequent_balanced_accuracy: Estimate
    blast_auc: Estimate
    atypical_auc: Estimate
    blasts_gold: int
    blasts_network: int


@dataclass(frozen=True, slots=True)
class Group:
    """The images of a patient of a source, of all folds together. Blasts as in `SourceResult`."""

    source: str
    patient: str
    images: int
    classes: int
    balanced_accuracy: float | None
    blast_auc: float | None
    atypical_auc: float | None
    blasts_gold: int
    blasts_network: int


@dataclass(frozen=True, slots=True)
class Resampling:
    """How the bootstrap was done."""

    resamples: int
    seed: int
    patients: int
    single_images: int


@dataclass(frozen=True, slots=True)
class SplitWords:
    """How training and test images were kept apart, as a title and in a sentence; `caution` where it flatters or is unknown."""

    title: str
    text: str
    caution: bool


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that was found. `confusion`: (15, 15) images, rows the gold standard, in the order of `taxonomy.CODES`."""

    name: str
    inputs: tuple[InputFile, ...]
    run: Mapping[str, Any]
    images: int
    left_out: int
    patients: int
    without_patient: int
    folds: tuple[Fold, ...]
    split: SplitWords
    warnings: tuple[str, ...]
    threshold: float
    resampling: Resampling
    balanced_accuracy: Estimate
    accuracy: Estimate
    ece: Estimate
    classes: tuple[ClassResult, ...]
    confusion: Floats
    decisions: tuple[Decision, ...]
    reannotations: tuple[Reannotation, ...]
    sources: tuple[SourceResult, ...]
    by_patient: tuple[Group, ...]
    calibration: Calibration
