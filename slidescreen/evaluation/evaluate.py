"""Predictions -> Evaluation. The same measures are taken of all images, of each fold and of each resample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from slidescreen.differential import clopper_pearson
from slidescreen.errors import UsageError
from slidescreen.evaluation import metrics
from slidescreen.evaluation.bootstrap import FEWEST_UNITS, RESAMPLES, SEED, Units, group_units, interval, resample
from slidescreen.evaluation.metrics import Bools, Floats
from slidescreen.evaluation.predictions import UNKNOWN, Predictions, is_member
from slidescreen.evaluation.result import (
    ClassResult,
    Decision,
    Estimate,
    Evaluation,
    Fold,
    Group,
    MeanCurve,
    Rate,
    Reannotation,
    Resampling,
    SensSpec,
    SourceResult,
)
from slidescreen.evaluation.split import split_words, warnings
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES

DECISIONS: Final = {"blast": BLAST, "atypical": ATYPICAL}
DEFAULT_THRESHOLD: Final = 0.5
FREQUENT: Final = 30
"""Images from which on a class counts as frequent."""

Measures = dict[str, Floats]
"""Name of a measure -> (r,) or, for the classes, (r, 15): one row per row of weights."""


def evaluate(
    predictions: Predictions, name: str, *, threshold: float = DEFAULT_THRESHOLD, resamples: int = RESAMPLES
) -> Evaluation:
    """Everything the paper reports, at the decision threshold `threshold` in [0, 1]. Raises UsageError for another one.

    Takes seconds for 18,000 images; the same predictions give the same numbers.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: must lie in 0-1")
    units = group_units(predictions.source, predictions.patient)
    known = _Estimates(predictions, threshold, units, resamples)
    everywhere = np.ones((1, len(predictions)))
    right = predictions.label == predictions.gold
    return Evaluation(
        name=name,
        inputs=predictions.inputs,
        run=predictions.run,
        images=len(predictions),
        left_out=predictions.left_out,
        patients=units.patients,
        without_patient=int((predictions.patient == "").sum()),
        folds=tuple(_fold(predictions, k) for k in predictions.folds),
        split=split_words(predictions),
        warnings=warnings(predictions),
        threshold=threshold,
        resampling=Resampling(resamples, SEED, units.patients, len(units) - units.patients),
        balanced_accuracy=known.of("balanced_accuracy"),
        accuracy=known.of("accuracy"),
        ece=known.of("ece"),
        classes=tuple(_class(predictions, code, known) for code in CODES),
        confusion=metrics.crosstab(predictions.gold, predictions.label, len(CODES), everywhere)[0],
        decisions=tuple(_decision(predictions, key, threshold, known) for key in DECISIONS),
        reannotations=tuple(_reannotation(predictions, k, threshold, known) for k in _given(predictions)),
        sources=tuple(_sources(predictions, threshold, resamples)),
        by_patient=tuple(_patients(predictions, threshold)),
        calibration=metrics.calibration(_confidence(predictions), right, everywhere),
    )


def measure(predictions: Predictions, weights: Floats, threshold: float, *, calibrated: bool) -> Measures:
    """Every measure that has folds and an interval, for each row of `weights`, (r, n)."""
    confusion = metrics.crosstab(predictions.gold, predictions.label, len(CODES), weights)
    scores = metrics.class_scores(confusion)
    measures: Measures = {
        "precision": scores.precision,
        "sensitivity": scores.sensitivity,
        "specificity": scores.specificity,
        "balanced_accuracy": metrics.nan_mean(scores.sensitivity, 1),
        "frequent_balanced_accuracy": metrics.nan_mean(scores.sensitivity[:, frequent(predictions)], 1),
        "accuracy": metrics.accuracy(confusion),
    }
    for key, members in DECISIONS.items():
        p, positive = predictions.probability(members), is_member(predictions.gold, members)
        in_fold = [predictions.fold == k for k in predictions.folds]
        areas = [metrics.auc(p[rows], positive[rows], weights[:, rows]) for rows in in_fold]
        measures[f"{key}.auc"] = metrics.nan_mean(np.stack(areas), 0)
        measures[f"{key}.sensitivity"], measures[f"{key}.specificity"] = metrics.hits(p >= threshold, positive, weights)
    for k in _given(predictions):
        measures |= _kappas(predictions, k, weights)
    if calibrated:  # resampling adds to the ECE itself, so that no interval is made from it
        right = predictions.label == predictions.gold
        measures["ece"] = metrics.calibration(_confidence(predictions), right, weights).ece
    return measures


def frequent(predictions: Predictions) -> Bools:
    """(15,) whether a class has at least 30 images."""
    return np.bincount(predictions.gold, minlength=len(CODES)) >= FREQUENT


def _kappas(predictions: Predictions, k: int, weights: Floats) -> Measures:
    kinds = len(CODES) + 1
    first, said = predictions.reannotations[:, 0], predictions.reannotations[:, k]
    shown = said != UNKNOWN

    def kappa(a: metrics.Ints, b: metrics.Ints, rows: Bools) -> Floats:
        return metrics.cohen_kappa(metrics.crosstab(a[rows], b[rows], kinds, weights[:, rows]))

    kappas = {
        f"kappa_{k + 1}.human": kappa(predictions.gold, said, shown),
        f"kappa_{k + 1}.network": kappa(predictions.gold, predictions.label, shown),
    }
    both = shown & (first != UNKNOWN)
    return kappas if k == 0 or not both.any() else kappas | {f"kappa_{k + 1}.first": kappa(first, said, both)}


class _Estimates:
    """All measures, three times: of everything, of each fold, of each resample."""

    def __init__(self, predictions: Predictions, threshold: float, units: Units, resamples: int) -> None:
        self._predictions, self._units = predictions, units
        of_folds = np.stack([predictions.fold == k for k in predictions.folds]).astype(np.float64)
        everywhere = np.ones((1, len(predictions)))
        self._value = measure(predictions, everywhere, threshold, calibrated=True)
        self._folds = measure(predictions, of_folds, threshold, calibrated=True)
        parts = [measure(predictions, weights, threshold, calibrated=False) for weights in resample(units, resamples)]
        self._resampled = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def of(self, measured: str, of_class: int | None = None, carriers: Sequence[Bools] = ()) -> Estimate:
        """One measure. It gets an interval when all images, and each of `carriers`, come from enough units."""
        at = (slice(None),) if of_class is None else (slice(None), of_class)
        folds = self._folds[measured][at]
        defined = folds[~np.isnan(folds)]
        value = float(self._value[measured][at][0])
        carriers = (np.ones(len(self._predictions), bool), *carriers)
        enough = all(self._units.among(rows) >= FEWEST_UNITS for rows in carriers)
        sampled = self._resampled.get(measured)
        return Estimate(
            value=None if np.isnan(value) else value,
            ci95=interval(sampled[at]) if sampled is not None and enough and not np.isnan(value) else None,
            folds=tuple(None if np.isnan(v) else float(v) for v in folds),
            mean=float(defined.mean()) if len(defined) else None,
            sd=float(defined.std()) if len(defined) > 1 else None,
        )


def _confidence(predictions: Predictions) -> Floats:
    chosen: Floats = predictions.probabilities[np.arange(len(predictions)), predictions.label]
    return chosen


def _fold(predictions: Predictions, number: int) -> Fold:
    rows = predictions.fold == number
    patients = group_units(predictions.source[rows], predictions.patient[rows]).patients
    return Fold(number, int(rows.sum()), patients, len(np.unique(predictions.gold[rows])))


def _class(predictions: Predictions, code: str, known: _Estimates) -> ClassResult:
    index = CODES.index(code)
    images, predicted = predictions.gold == index, predictions.label == index
    return ClassResult(
        code=code,
        images=int(images.sum()),
        predicted=int(predicted.sum()),
        fold_images=tuple(int((images & (predictions.fold == k)).sum()) for k in predictions.folds),
        precision=known.of("precision", index, [predicted]),
        sensitivity=known.of("sensitivity", index, [images]),
        specificity=known.of("specificity", index, [~images]),
    )


def rate(hit: Bools, among: Bools) -> Rate:
    """Share of the images `among` that `hit`, both (n,)."""
    count, total = int((hit & among).sum()), int(among.sum())
    return Rate(count, total, count / total, clopper_pearson(count, total)) if total else Rate(0, 0, None, None)


def _sens_spec(called: Bools, positive: Bools, among: Bools) -> SensSpec:
    return SensSpec(rate(called, among & positive), rate(~called, among & ~positive))


def _decision(predictions: Predictions, key: str, threshold: float, known: _Estimates) -> Decision:
    members = DECISIONS[key]
    p, positive = predictions.probability(members), is_member(predictions.gold, members)
    curves = {}
    for k in predictions.folds:
        rows = predictions.fold == k
        curve = metrics.roc_curve(p[rows], positive[rows])
        if curve is not None:
            curves[k] = curve
    mean_curve = None
    if curves:
        fpr = metrics.MEAN_CURVE_FPR
        each = np.stack([metrics.tpr_at(curve, fpr) for curve in curves.values()])
        mean_curve = MeanCurve(fpr, each.mean(0), each.std(0) if len(each) > 1 else None)
    return Decision(
        key=key,
        codes=tuple(code for code in CODES if code in members),
        threshold=threshold,
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        auc=known.of(f"{key}.auc", carriers=[positive, ~positive]),
        network=_sens_spec(p >= threshold, positive, np.ones(len(p), bool)),
        sensitivity=known.of(f"{key}.sensitivity", carriers=[positive]),
        specificity=known.of(f"{key}.specificity", carriers=[~positive]),
        curves=curves,
        mean_curve=mean_curve,
    )


def _given(predictions: Predictions) -> list[int]:
    """Which of the two re-annotations (0, 1) any image has."""
    return [k for k in (0, 1) if (predictions.reannotations[:, k] != UNKNOWN).any()]


def _reannotation(predictions: Predictions, k: int, threshold: float, known: _Estimates) -> Reannotation:
    said = predictions.reannotations[:, k]
    shown = said != UNKNOWN
    both = shown & (predictions.reannotations[:, 0] != UNKNOWN)
    human, network = {}, {}
    for key, members in DECISIONS.items():
        positive = is_member(predictions.gold, members)
        human[key] = _sens_spec(is_member(said, members), positive, shown)
        network[key] = _sens_spec(predictions.probability(members) >= threshold, positive, shown)
    return Reannotation(
        number=k + 1,
        images=int(shown.sum()),
        kappa_human=known.of(f"kappa_{k + 1}.human", carriers=[shown]),
        kappa_network=known.of(f"kappa_{k + 1}.network", carriers=[shown]),
        human=human,
        network=network,
        both=int(both.sum()) if k else 0,
        kappa_first=known.of(f"kappa_{k + 1}.first", carriers=[both]) if k and both.any() else None,
    )


def _sources(predictions: Predictions, threshold: float, resamples: int) -> Iterator[SourceResult]:
    """Each source evaluated by itself, its own units resampled; none where no source is known."""
    names = np.unique(predictions.source).tolist()
    for source in names if names != [""] else ():
        own = predictions.only(predictions.source == source)
        units = group_units(own.source, own.patient)
        known = _Estimates(own, threshold, units, resamples)
        gold = {key: is_member(own.gold, members) for key, members in DECISIONS.items()}
        often = frequent(own)
        yield SourceResult(
            source=source,
            images=len(own),
            patients=units.patients,
            classes=len(np.unique(own.gold)),
            balanced_accuracy=known.of("balanced_accuracy"),
            frequent_classes=tuple(code for code, yes in zip(CODES, often, strict=True) if yes),
            frequent_balanced_accuracy=known.of("frequent_balanced_accuracy"),
            blast_auc=known.of("blast.auc", carriers=[gold["blast"], ~gold["blast"]]),
            atypical_auc=known.of("atypical.auc", carriers=[gold["atypical"], ~gold["atypical"]]),
            blasts_gold=int(gold["blast"].sum()),
            blasts_network=int((own.probability(BLAST) >= threshold).sum()),
        )


def _patients(predictions: Predictions, threshold: float) -> Iterator[Group]:
    rows_of: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(predictions.source.tolist(), predictions.patient.tolist(), strict=True)):
        if key[1]:
            rows_of.setdefault(key, []).append(i)
    for key in sorted(rows_of):
        yield _group(predictions, threshold, key, np.array(rows_of[key]))


def _group(predictions: Predictions, threshold: float, key: tuple[str, str], rows: metrics.Ints) -> Group:
    gold, ones = predictions.gold[rows], np.ones((1, len(rows)))
    scores = metrics.class_scores(metrics.crosstab(gold, predictions.label[rows], len(CODES), ones))
    areas: dict[str, float | None] = {}
    for each, members in DECISIONS.items():
        area = float(metrics.auc(predictions.probability(members)[rows], is_member(gold, members), ones)[0])
        areas[each] = None if np.isnan(area) else area
    return Group(
        source=key[0],
        patient=key[1],
        images=len(rows),
        classes=len(np.unique(gold)),
        balanced_accuracy=float(metrics.nan_mean(scores.sensitivity, 1)[0]),
        blast_auc=areas["blast"],
        atypical_auc=areas["atypical"],
        blasts_gold=int(is_member(gold, BLAST).sum()),
        blasts_network=int((predictions.probability(BLAST)[rows] >= threshold).sum()),
    )
