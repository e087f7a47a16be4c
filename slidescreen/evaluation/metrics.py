"""Measures of classification over weighted images.

Every function takes `weights`, (r, n) non-negative numbers: how often each of the n images counts in each of r evaluations. One
row of ones is the plain result, a row that is 1 in one fold is that fold's, and rows of resampling counts give the bootstrap.
What is not defined (a share of nothing, an AUC with one kind only) is nan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CALIBRATION_BINS: Final = 15
MEAN_CURVE_FPR: Final[Floats] = np.unique(np.concatenate([np.linspace(0, 0.1, 201), np.linspace(0, 1, 201)]))
"""Where curves are averaged: every 0.0005 up to 0.1, every 0.005 beyond."""


def ratio(part: Floats, whole: Floats) -> Floats:
    """The share `part` of `whole`, nan where there is no whole."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return quotient


def nan_mean(values: Floats, axis: int) -> Floats:
    """Mean over what is defined, nan where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis), defined.sum(axis))


def crosstab(first: Ints, second: Ints, kinds: int, weights: Floats) -> Floats:
    """(r, kinds, kinds) sums of weights; entry [_, i, j] is of the images with `first` i and `second` j."""
    n = len(first)
    one_hot = csr_array((np.ones(n), (np.arange(n), first * kinds + second)), shape=(n, kinds * kinds))
    summed: Floats = np.ascontiguousarray((one_hot.T @ weights.T).T)
    return summed.reshape(-1, kinds, kinds)


@dataclass(frozen=True, slots=True, eq=False)
class ClassScores:
    """Per class, (r, k): equations 1-3 of Matek et al. 2019. Sensitivity is nan for a class without images, precision for one
    that was never predicted."""

    precision: Floats
    sensitivity: Floats
    specificity: Floats


def class_scores(confusion: Floats) -> ClassScores:
    """Scores from (r, k, k) confusion matrices, rows the gold standard, columns the prediction."""
    hit = np.diagonal(confusion, axis1=1, axis2=2)
    positive, called = confusion.sum(2), confusion.sum(1)
    negative = positive.sum(1, keepdims=True) - positive
    return ClassScores(ratio(hit, called), ratio(hit, positive), ratio(negative - (called - hit), negative))


def accuracy(confusion: Floats) -> Floats:
    """(r,) share of images on the diagonal."""
    return ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def cohen_kappa(confusion: Floats) -> Floats:
    """(r,) unweighted kappa (Cohen 1960); nan where chance alone would agree always."""
    total = confusion.sum((1, 2))
    agreed = ratio(np.trace(confusion, axis1=1, axis2=2), total)
    chance = ratio((confusion.sum(1) * confusion.sum(2)).sum(1), total**2)
    return ratio(agreed - chance, 1 - chance)


def auc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """(r,) area under the ROC curve: the chance that a positive image scores higher than a negative one, ties counting half."""
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    of_order = weights[:, order]
    of_positive = of_order * positive[order]
    at_positive = np.add.reduceat(of_positive, starts, axis=1)
    at_negative = np.add.reduceat(of_order - of_positive, starts, axis=1)
    below = np.cumsum(at_negative, axis=1) - at_negative
    wins = ((below + at_negative / 2) * at_positive).sum(1)
    return ratio(wins, at_positive.sum(1) * at_negative.sum(1))


def hits(called: Bools, positive: Bools, weights: Floats) -> tuple[Floats, Floats]:
    """(r,) sensitivity and (r,) specificity of a yes-or-no decision."""
    sensitivity = ratio(weights @ (called & positive), weights @ positive)
    specificity = ratio(weights @ (~called & ~positive), weights @ ~positive)
    return sensitivity, specificity


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """Corners of a ROC curve from (0, 0) to (1, 1), (m,) each: calling positive what scores >= `threshold`; the first
    threshold is infinite. Corners on a straight line between their neighbours are left out."""

    threshold: Floats
    fpr: Floats
    tpr: Floats


def roc_curve(scores: Floats, positive: Bools) -> RocCurve | None:
    """The curve, or None where only one kind of image is there."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(positive[order])[ends]
    false = 1 + ends - true
    corner = np.ones(len(ends), bool)
    corner[1:-1] = (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0)
    tpr, fpr = true[corner] / positive.sum(), false[corner] / (~positive).sum()
    return RocCurve(np.append(np.inf, scores[order][ends][corner]), np.append(0.0, fpr), np.append(0.0, tpr))


def tpr_at(curve: RocCurve, fpr: Floats) -> Floats:
    """Sensitivity at each false positive rate, on the line between the corners; 0 at rate 0, where every curve starts."""
    between: Floats = np.interp(fpr, curve.fpr, curve.tpr)
    return np.where(fpr == 0, 0.0, between)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Bins of equal width over the probability of the predicted class, (0, 1/15], (1/15, 2/15] ...; (r, 15) each: images (sum
    of weights), mean probability and share named right, nan in empty bins. `ece`, (r,): the mean distance of the two over
    all images (Naeini et al. 2015, Guo et al. 2017)."""

    images: Floats
    confidence: Floats
    right: Floats
    ece: Floats


def calibration(confidence: Floats, right: Bools, weights: Floats) -> Calibration:
    """Top-label calibration: `confidence` (n,) is the probability of the predicted class, `right` whether it is the class."""
    n, bins = len(confidence), CALIBRATION_BINS
    edges = np.arange(1, bins) / bins
    at = np.searchsorted(edges, confidence, side="left")
    one_hot = csr_array((np.ones(n), (np.arange(n), at)), shape=(n, bins))

    def per_bin(values: Floats) -> Floats:
        summed: Floats = np.ascontiguousarray((one_hot.T @ (weights * values).T).T)
        return summed

    images, sure, correct = per_bin(np.ones(n)), per_bin(confidence), per_bin(right.astype(np.float64))
    gap = np.abs(correct - sure).sum(1)
    return Calibration(images, ratio(sure, images), ratio(correct, images), ratio(gap, images.sum(1)))
