"""An evaluation as plain values for JSON, and as tables for CSV files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from slidescreen.evaluation.metrics import CALIBRATION_BINS
from slidescreen.evaluation.published import DECISIONS, KAPPA, REANNOTATED, TABLE_1
from slidescreen.evaluation.result import Decision, Estimate, Evaluation, Group, Rate, SensSpec, SourceResult
from slidescreen.taxonomy import BY_CODE, CODES

Table = tuple[list[str], list[list[Any]]]
"""Header and rows; None is an empty field."""


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Every number of the evaluation, field names as in `result`, the codes' order, and the published numbers."""
    published = {"classes": TABLE_1, "decisions": DECISIONS, "reannotated": REANNOTATED, "kappa": KAPPA}
    plain = _plain(evaluation) | {"codes": list(CODES), "published": _plain(published)}
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_tables(evaluation: Evaluation) -> dict[str, Table]:
    """File name -> table."""
    return {
        "classes.csv": _classes(evaluation),
        "measures.csv": _measures(evaluation),
        "confusion.csv": _confusion(evaluation),
        "decisions.csv": _decisions(evaluation),
        "roc.csv": _roc(evaluation),
        "sources.csv": _sources(evaluation.sources),
        "patients.csv": _groups(evaluation.by_patient),
        "calibration.csv": _calibration(evaluation),
    }


def _classes(evaluation: Evaluation) -> Table:
    measures = ("precision", "sensitivity", "specificity")
    header = ["code", "name", "images", "predicted"]
    for name in measures:
        header += [f"{name}_mean", f"{name}_sd", f"{name}_folds", f"{name}_pooled", f"{name}_ci95_low", f"{name}_ci95_high"]
    header += ["published_images"] + [f"published_{name}_{part}" for name in measures[:2] for part in ("mean", "sd")]
    rows = []
    by_code = {each.code: each for each in evaluation.classes}
    for code, paper in TABLE_1.items():
        found = by_code[code]
        row: list[Any] = [code, BY_CODE[code].name, found.images, found.predicted]
        for estimate in (found.precision, found.sensitivity, found.specificity):
            row += [estimate.mean, estimate.sd, estimate.defined, estimate.value, *(estimate.ci95 or (None, None))]
        row += [paper.images, paper.precision.mean, paper.precision.sd, paper.sensitivity.mean, paper.sensitivity.sd]
        rows.append(row)
    return header, rows


def estimates(evaluation: Evaluation) -> Iterator[tuple[str, str, Estimate]]:
    """(measure, class code or "", estimate) of everything that is measured fold by fold."""
    yield "balanced_accuracy", "", evaluation.balanced_accuracy
    yield "accuracy", "", evaluation.accuracy
    yield "ece", "", evaluation.ece
    for decision in evaluation.decisions:
        yield f"{decision.key}_auc", "", decision.auc
        yield f"{decision.key}_sensitivity", "", decision.sensitivity
        yield f"{decision.key}_specificity", "", decision.specificity
    for each in evaluation.reannotations:
        yield f"kappa_reannotation_{each.number}", "", each.kappa_human
        yield f"kappa_network_on_reannotated_{each.number}", "", each.kappa_network
        if each.kappa_first is not None:
            yield "kappa_reannotation_2_to_1", "", each.kappa_first
    for found in evaluation.classes:
        for name in ("precision", "sensitivity", "specificity"):
            yield name, found.code, getattr(found, name)


def _measures(evaluation: Evaluation) -> Table:
    header = ["measure", "class", "value", "ci95_low", "ci95_high", "mean", "sd"]
    header += [f"fold_{fold.number}" for fold in evaluation.folds]
    rows = [[name, code, e.value, *(e.ci95 or (None, None)), e.mean, e.sd, *e.folds] for name, code, e in estimates(evaluation)]
    return header, rows


def _confusion(evaluation: Evaluation) -> Table:
    rows = [[code, *(int(n) for n in row)] for code, row in zip(CODES, evaluation.confusion, strict=True)]
    return ["gold", *CODES], rows


def _rate(rate: Rate) -> list[Any]:
    return [rate.count, rate.total, rate.value, *(rate.limits or (None, None))]


def who(evaluation: Evaluation, decision: Decision) -> Iterator[tuple[str, SensSpec]]:
    """Everyone who answered the question, and how well: the network on all images, then human and network on each subset."""
    yield "network", decision.network
    for each in evaluation.reannotations:
        yield f"reannotation_{each.number}", each.human[decision.key]
        yield f"network_on_reannotated_{each.number}", each.network[decision.key]


def _decisions(evaluation: Evaluation) -> Table:
    parts = ("true", "of", "value", "limit_low", "limit_high")
    header = ["decision", "threshold", "by", *(f"{name}_{part}" for name in ("sensitivity", "specificity") for part in parts)]
    rows = [
        [decision.key, decision.threshold, by, *_rate(said.sensitivity), *_rate(said.specificity)]
        for decision in evaluation.decisions
        for by, said in who(evaluation, decision)
    ]
    return header, rows


def _roc(evaluation: Evaluation) -> Table:
    rows: list[list[Any]] = []
    for decision in evaluation.decisions:
        for fold, curve in decision.curves.items():
            threshold = [None if math.isinf(t) else t for t in curve.threshold.tolist()]
            corners = zip(threshold, curve.fpr.tolist(), curve.tpr.tolist(), strict=True)
            rows += [[decision.key, fold, *corner, None] for corner in corners]
        mean = decision.mean_curve
        if mean is not None:
            sd = [None] * len(mean.fpr) if mean.sd is None else mean.sd.tolist()
            averaged = zip(mean.fpr.tolist(), mean.tpr.tolist(), sd, strict=True)
            rows += [[decision.key, "mean", None, *point] for point in averaged]
    return ["decision", "fold", "threshold", "fpr", "tpr", "sd"], rows


def _sources(sources: tuple[SourceResult, ...]) -> Table:
    measures = ("balanced_accuracy", "frequent_balanced_accuracy", "blast_auc", "atypical_auc")
    header = ["source", "images", "patients", "classes", "frequent_classes"]
    header += [f"{name}{part}" for name in measures for part in ("", "_ci95_low", "_ci95_high")]
    rows = []
    for each in sources:
        row: list[Any] = [each.source, each.images, each.patients, each.classes, " ".join(each.frequent_classes)]
        for name in measures:
            found: Estimate = getattr(each, name)
            row += [found.value, *(found.ci95 or (None, None))]
        rows.append([*row, each.blasts_gold, each.blasts_network])
    return [*header, "blasts_gold", "blasts_network"], rows


def _groups(groups: tuple[Group, ...]) -> Table:
    header = [field.name for field in dataclasses.fields(Group)]
    return header, [[getattr(group, name) for name in header] for group in groups]


def _calibration(evaluation: Evaluation) -> Table:
    found = evaluation.calibration
    header = ["bin_low", "bin_high", "images", "mean_probability", "share_right"]
    return header, [
        [
            b / CALIBRATION_BINS,
            (b + 1) / CALIBRATION_BINS,
            int(found.images[0, b]),
            *_plain([found.confidence[0, b].item(), found.right[0, b].item()]),
        ]
        for b in range(CALIBRATION_BINS)
    ]
