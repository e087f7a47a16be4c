"""Fits temperature and rejection of a model and measures them, and the model, on images that it has not seen.

Whatever is fitted is measured on the other half of the images (see `halves`), both ways round; what is shipped is fitted in the
same way on all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.classify import softmax
from slidescreen.evaluation.bootstrap import group_units, interval, resample
from slidescreen.evaluation.metrics import auc, nan_mean, ratio
from slidescreen.rejection import Rejection
from slidescreen.taxonomy import ATYPICAL, BLAST
from slidescreen.training.classifier.calibrate import cross_calibrated, ece, fit_temperature
from slidescreen.training.classifier.images import LabelledImage
from slidescreen.training.classifier.material import Group, Material
from slidescreen.training.classifier.rejecting import LEAST as LEAST_SCORE
from slidescreen.training.classifier.rejecting import METHODS, OURS, Lesson, Score, fit_rejection, threshold_of
from slidescreen.training.classifier.tables import Table, number, share

Floats = NDArray[np.float64]
Probabilities = NDArray[np.float32]
KEPT: Final = (0.99, 0.98)
"""Shares of the leukocytes that are kept: as the threshold is set, and as compared with others' work."""
FIELDS: Final = ("red cells", "empty ground", "platelets of fields")
LEAST: Final = 5
"""Unseen images of a class for its recall to count in balanced accuracy by source ..."""
MANY: Final = 30
"""... and in that of the frequent classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What is shipped: the temperature, the score of rejection, its threshold."""

    temperature: float
    rejection: Rejection
    threshold: float


def fit_all(material: Material) -> Fitted:
    """Temperature, rejection and threshold from all unseen images."""
    rejection = fit_rejection(material.lesson(None))
    unseen = material.unseen.outputs
    return Fitted(
        round(fit_temperature(unseen.logits, material.labels), 4),
        rejection,
        round(threshold_of(rejection.scores(unseen.features), least=LEAST_SCORE), 4),
    )


def calibrated(material: Material) -> Probabilities:
    """(n, 15) of the unseen images, each by the temperature of the other half."""
    return cross_calibrated(material.unseen.outputs.logits, material.labels, material.unseen.halves)


def balanced_accuracy(labels: NDArray[np.int64], best: NDArray[np.int64], weights: Floats, least: int = 1) -> Floats:
    """(r,) mean recall over the classes with at least `least` images; nan where there is none."""
    classes = [c for c in np.unique(labels) if (labels == c).sum() >= least]
    if not classes:
        return np.full(len(weights), np.nan)
    recalls = []
    for c in classes:
        own = labels == c
        recalls.append(ratio(weights @ (own & (best == c)), weights @ own))
    return nan_mean(np.stack(recalls), 0)


@dataclass(frozen=True, slots=True)
class Measures:
    """On some images: accuracy, balanced accuracy, and the AUC of the two questions, with 95 % intervals by patient."""

    images: int
    accuracy: float
    balanced: tuple[float, tuple[float, float] | None]
    blast: tuple[float, tuple[float, float] | None]
    atypical: tuple[float, tuple[float, float] | None]


def measure(
    images: Sequence[LabelledImage],
    labels: NDArray[np.int64],
    probabilities: Probabilities,
    classes: Sequence[str],
    least: int = 1,
) -> Measures:
    """Measures of some images, (n,) labels and (n, 15) probabilities in the order of `classes`."""
    units = group_units(np.array([i.source for i in images]), np.array([i.patient for i in images]))
    weights = np.concatenate([np.ones((1, len(images))), *resample(units)])
    best = probabilities.argmax(1)

    def with_limits(values: Floats) -> tuple[float, tuple[float, float] | None]:
        return float(values[0]), interval(values[1:])

    def asked(members: Collection[str]) -> tuple[float, tuple[float, float] | None]:
        columns = [i for i, code in enumerate(classes) if code in members]
        score = probabilities[:, columns].sum(1).astype(np.float64)
        return with_limits(auc(score, np.isin(labels, columns), weights))

    balanced = with_limits(balanced_accuracy(labels, best, weights, least))
    return Measures(len(images), float((best == labels).mean()), balanced, asked(BLAST), asked(ATYPICAL))


def by_source(material: Material, probabilities: Probabilities, classes: Sequence[str]) -> tuple[Measures, Table]:
    """All unseen images together, and a table of them and of each source."""
    sources = np.array([image.source for image in material.images])
    parts = [("all", np.ones(len(sources), bool)), *((s, sources == s) for s in np.unique(sources))]
    rows, whole = [], None
    for name, own in parts:
        images = [image for image, o in zip(material.images, own.tolist(), strict=True) if o]
        m = measure(images, material.labels[own], probabilities[own], classes, LEAST)
        whole = whole or m
        patients = len({image.patient for image in images} - {""})
        frequent = balanced_accuracy(material.labels[own], probabilities[own].argmax(1), np.ones((1, m.images)), MANY)[0]
        numbers = [number(m.accuracy), number(m.balanced[0], 3, m.balanced[1]), number(float(frequent))]
        aucs = [number(v[0], 3, v[1]) for v in (m.blast, m.atypical)]
        rows.append((name or "unnamed", str(m.images), str(patients) if patients else "unknown", *numbers, *aucs))
    assert whole is not None
    columns = (
        *("source", "images", "patients", "accuracy", "balanced accuracy", f"of classes with {MANY} images"),
        *("blast AUC", "atypical AUC"),
    )
    note = (
        "Images that the network has not learned from. In brackets 95 % intervals: 1,000 resamples of whole patients, single "
        f"images where no patient is known. Balanced accuracy is over the classes with at least {LEAST} images in the source."
    )
    return whole, Table("Unseen images, by source", note, columns, tuple(rows))


def recalls(material: Material, probabilities: Probabilities, classes: Sequence[str]) -> Table:
    """Recall of each class in each source, with the number of images."""
    sources = np.array([image.source for image in material.images])
    best, names = probabilities.argmax(1), np.unique(sources).tolist()
    rows = []
    for c, code in enumerate(classes):
        cells = []
        for own in (np.ones(len(sources), bool), *(sources == s for s in names)):
            mine = own & (material.labels == c)
            cells.append(f"{(best[mine] == c).mean():.2f} ({mine.sum()})" if mine.any() else "\N{EN DASH}")
        rows.append((code, *cells))
    return Table("Recall by class and source (images)", "", ("class", "all", *(n or "unnamed" for n in names)), tuple(rows))


def confusion(material: Material, probabilities: Probabilities, classes: Sequence[str]) -> Table:
    """Unseen images by class (rows) and best class (columns)."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (material.labels, probabilities.argmax(1)), 1)
    rows = tuple((code, *(str(n) if n else "" for n in row)) for code, row in zip(classes, counts.tolist(), strict=True))
    return Table("Confusion matrix", "Rows: label; columns: what the model says. All sources.", ("", *classes), rows)


def calibration_table(material: Material, probabilities: Probabilities) -> tuple[float, float, Table]:
    """ECE before and after, over all sources, and a table of them and of each source."""
    raw = softmax(material.unseen.outputs.logits)
    sources = np.array([image.source for image in material.images])
    rows, first = [], (0.0, 0.0)
    for name, own in (("all", np.ones(len(sources), bool)), *((s, sources == s) for s in np.unique(sources))):
        before, after = (ece(p[own], material.labels[own]) for p in (raw, probabilities))
        first = (before, after) if name == "all" else first
        rows.append((name or "unnamed", str(own.sum()), number(before), number(after)))
    note = "Expected calibration error of the best class, 15 bins; the temperature of each half was fitted on the other."
    table = Table("Calibration", note, ("source", "images", "ECE without", "ECE with temperature"), tuple(rows))
    return *first, table


@lru_cache(maxsize=8)
def _lesson(material: Material, half: int, without: tuple[str, ...] = ()) -> Lesson:
    """The same lesson for the same half, so that what is fitted on it is fitted once."""
    return material.lesson(half, without)


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What a score refused: (refused, of) at each threshold of `KEPT`, by kind."""

    lost: tuple[tuple[int, int], ...]
    by_kind: Mapping[str, tuple[tuple[int, int], ...]]


def verdicts(material: Material, method: str, halves: Sequence[int] = (0, 1), without: Collection[str] = ()) -> Verdicts:
    """Fit a score on each of `halves`, without some kinds, and count what it refuses of the other half; kinds that it was not
    fitted on are counted whole, by the first."""
    totals: dict[str, NDArray[np.int64]] = {}

    def add(kind: str, score: Score, group: Group, half: int | None, thresholds: Floats) -> None:
        scores = score(group.part(half))
        counts = [[int((scores > t).sum()), len(scores)] for t in thresholds]
        totals[kind] = totals.get(kind, np.zeros((len(KEPT), 2), np.int64)) + np.array(counts)

    for half in halves:
        score = METHODS[method](_lesson(material, half, tuple(without)))
        own = score(material.unseen.part(half))
        floor = LEAST_SCORE if method == OURS else -np.inf
        thresholds = np.array([threshold_of(own, KEPT[0], floor), threshold_of(own, KEPT[1])])
        add("", score, material.unseen, 1 - half, thresholds)
        for kind, group in {**material.strangers, **material.others}.items():
            seen = group.fitted and kind not in without
            if seen or half == halves[0]:
                add(kind, score, group, 1 - half if seen else None, thresholds)
    counted = {k: tuple((int(a), int(n)) for a, n in v) for k, v in totals.items()}
    return Verdicts(counted.pop(""), counted)


def strangers_of(material: Material) -> list[str]:
    """Kinds of label `-`: those that came with the images."""
    return [kind for kind in material.strangers if ": " in kind]


def methods_table(material: Material) -> Table:
    """Every method at 98 % of the leukocytes kept: what it refuses of each kind."""
    kinds = [*material.strangers]
    rows = []
    for method in METHODS:
        found = verdicts(material, method)
        cells = [_percent(found.by_kind[kind][1]) for kind in kinds]
        asked = [found.by_kind[kind][1] for kind in strangers_of(material)]
        label = _percent((sum(a for a, _ in asked), sum(n for _, n in asked)))
        rows.append((method, _percent(found.lost[1]), label, *cells))
    note = (
        "Percent refused, at the threshold that keeps 98 % of the leukocytes of the half that the score was fitted on; "
        f"measured on the other half, both ways round. The last one, {OURS}, is used."
    )
    return Table("Scores compared", note, ("score", "leukocytes lost", "all of label -", *kinds), tuple(rows))


def rejection_table(material: Material, found: Verdicts) -> Table:
    """What the score that is used refuses, by kind, at both thresholds."""
    rows = [("leukocytes of the 15 classes, unseen", *(share(*n) for n in found.lost))]
    label = [found.by_kind[kind] for kind in strangers_of(material)]
    if label:
        sums = [(sum(k[i][0] for k in label), sum(k[i][1] for k in label)) for i in range(len(KEPT))]
        rows.append(("all of label -", *(share(*n) for n in sums)))
    for kind in (*material.strangers, *material.others):
        said = kind if {**material.strangers, **material.others}[kind].fitted else f"{kind} (never fitted on)"
        rows.append((said, *(share(*n) for n in found.by_kind[kind])))
    columns = ("kind", *(f"refused, {100 * kept:g} % kept" for kept in KEPT))
    note = "Measured on the half that the score was not fitted on, both ways round."
    return Table("What is refused", note, columns, tuple(rows))


def unknown_table(material: Material) -> Table:
    """Kinds that the fit has never seen."""
    rows = []
    for name, kinds in _left_out(material):
        found = verdicts(material, OURS, (0,), kinds)
        for kind in kinds:
            rows.append((kind, name, *(_percent(n) for n in found.by_kind[kind]), _percent(found.lost[0])))
    columns = ("kind", "left out of the fit", "refused, 99 % kept", "98 % kept", "leukocytes lost, 99 % kept")
    return Table("Kinds that the fit has never seen", "Percent; fitted on one half, without these kinds.", columns, tuple(rows))


def _left_out(material: Material) -> Iterator[tuple[str, list[str]]]:
    """Name and kinds of what is left out together."""
    sources: dict[str, list[str]] = {}
    for kind in material.strangers:
        name = f"all of {kind.split(': ')[0]}" if ": " in kind else "all from fields" if kind in FIELDS else "all blur"
        sources.setdefault(name, []).append(kind)
    yield from sources.items()


def _percent(counted: tuple[int, int]) -> str:
    refused, total = counted
    return f"{100 * refused / total:.1f}" if total else "\N{EN DASH}"


def lost_table(material: Material, classes: Sequence[str]) -> Table:
    """Leukocytes refused although they are some, by class and source, 99 % kept."""
    refused = np.zeros(len(material.labels), bool)
    for fit, rest in material.unseen.halves.both():
        half = int(material.unseen.halves.second[fit][0])
        score = METHODS[OURS](_lesson(material, half))
        threshold = threshold_of(score(material.unseen.part(half)), least=LEAST_SCORE)
        refused[rest] = score(material.unseen.part(1 - half)) > threshold
    sources = np.array([image.source for image in material.images])
    groups = [(f"source {s or 'unnamed'}", sources == s) for s in np.unique(sources)]
    groups += [(code, material.labels == c) for c, code in enumerate(classes)]
    rows = tuple((name, share(int(refused[own].sum()), int(own.sum()))) for name, own in groups)
    return Table("Leukocytes lost, by source and class", "Refused at the threshold that keeps 99 %.", ("", "lost"), rows)


def ties_table(
    probabilities: Probabilities, labels: NDArray[np.int64], classes: Sequence[str], margins: Sequence[float]
) -> Table:
    """How many cells become unsure by their margin, blasts and others, and how often they are wrong."""
    blast = np.isin(labels, [i for i, code in enumerate(classes) if code in BLAST])
    two = np.sort(probabilities, axis=1)[:, -2:]
    wrong = probabilities.argmax(1) != labels
    rows = []
    for margin in margins:
        unsure = two[:, 1] - two[:, 0] < margin
        doubted = [_percent((int(unsure[part].sum()), int(part.sum()))) for part in (blast, ~blast)]
        said = [_percent((int(wrong[part].sum()), int(part.sum()))) for part in (unsure, ~unsure)]
        rows.append((f"{margin:g}", f"{100 * unsure.mean():.1f}", *doubted, *said))
    columns = (
        *("lead of the best class below", "unsure, %", "of blasts, %", "of others, %"),
        *("wrong among unsure, %", "wrong among the rest, %"),
    )
    return Table("Near-ties", "Unseen images, calibrated probabilities.", columns, tuple(rows))
