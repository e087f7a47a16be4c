"""Which image is tested in which fold."""

from __future__ import annotations

import csv
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from slidescreen.errors import UsageError
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.images import LabelledImage

SPLITS: Final = ("stratified", "patient", "source")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """`kind`: one of `SPLITS`, or "file". `fold[i]`: the fold, from 1, in which image i is tested and in no other learned from;
    0: it is never tested. `notes`: where the split is not what one would wish, in words."""

    kind: str
    folds: int
    fold: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def test(self, fold: int) -> NDArray[np.int64]:
        """Indices of the images that are tested in `fold`."""
        return np.flatnonzero(self.fold == fold)

    def train(self, fold: int) -> NDArray[np.int64]:
        """Indices of the images that are learned from in `fold`."""
        return np.flatnonzero(self.fold != fold)


def split_images(
    images: Sequence[LabelledImage], how: str, folds: int, seed: int, twin_of: Mapping[int, int] | None = None
) -> Split:
    """Deal images of the 15 classes out to folds, each class and each source as evenly as can be.

    `how`: stratified: images one by one, as Matek et al. 2019. patient: patients as a whole; an image without a patient is its
    own. source: a fold for each source, by name, whatever `folds` says. Else a CSV file with the columns file,fold; images that
    it does not name are of fold 0.
    `twin_of`: index of an image with the same px as an earlier one -> that one's. Images dealt out one by one go to the fold
    of their twin, patients who share one go together; where sources or a file decide, a note tells of those that lie apart.

    Raises UsageError when there is one class only, a patient split is asked for with fewer patients than folds, a source split
    with one source, or the file is wrong.
    """
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2 are needed, to learn from one and test on the other")
    labels = [image.label for image in images]
    if len(set(labels)) < 2:
        raise UsageError(f"all {len(images)} images are of class {labels[0] if labels else '-'}; at least 2 classes are needed")
    if len(images) < folds:
        raise UsageError(f"{len(images)} images cannot be dealt out to {folds} folds; use fewer folds")
    strata = np.array([f"{image.label} {image.source}" for image in images])
    notes: tuple[str, ...] = ()
    if how == "patient":
        fold, notes = _by_patient(images, strata, folds, seed, twin_of or {})
    elif how == "source":
        fold, notes = _by_source(images)
    elif how != "stratified":
        fold = _from_file(images, Path(how))
    else:
        fold = _dealt(StratifiedKFold(folds, shuffle=True, random_state=seed), strata, None)
    for twin, first in (twin_of or {}).items():
        if how in ("stratified", "patient"):
            fold[twin] = fold[first]
    apart = sum(int(fold[twin] != fold[first]) for twin, first in (twin_of or {}).items())
    if apart:
        notes = (*notes, f"{apart} images show the same as one of another fold, which is learned from and tested on at once")
    folds = folds if how in ("stratified", "patient") else int(fold.max())
    uneven = _uneven(labels, fold, folds) if how in ("stratified", "patient") else ()
    return Split(how if how in SPLITS else "file", folds, fold, (*notes, *uneven))


def _by_patient(
    images: Sequence[LabelledImage], strata: NDArray[np.str_], folds: int, seed: int, twin_of: Mapping[int, int]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    patients = {image.patient for image in images} - {""}
    if len(patients) < folds:
        raise UsageError(
            f"{len(patients)} patients cannot be dealt out to {folds} folds; name them in the column patient, use fewer folds, "
            "or --split stratified"
        )
    groups: NDArray[Any] = np.array(
        [f"patient {im.source} {im.patient}" if im.patient else f"image {i}" for i, im in enumerate(images)]
    )
    known = np.array([bool(image.patient) for image in images])
    for twin, first in twin_of.items():
        same = np.isin(groups, (groups[twin], groups[first]))
        groups[same], known[same] = groups[first], known[same].any()
    fold = np.zeros(len(images), np.int64)
    fold[known] = _dealt(StratifiedGroupKFold(folds, shuffle=True, random_state=seed), strata[known], groups[known])
    notes: tuple[str, ...] = ()
    if alone := int((~known).sum()):
        fold[~known] = _one_by_one(strata[~known], folds, seed)
        notes = (f"{alone} images name no patient and are dealt out one by one: cells of one person may lie in several folds",)
    return fold, notes


def _one_by_one(strata: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """Images dealt out one by one, each stratum evenly; in turn where all strata are smaller than the number of folds."""
    if max(Counter(strata.tolist()).values()) >= folds:
        return _dealt(StratifiedKFold(folds, shuffle=True, random_state=seed), strata, None)
    return np.arange(len(strata)) % folds + 1


def _by_source(images: Sequence[LabelledImage]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    sources = sorted({image.source for image in images})
    if len(sources) < 2 or "" in sources:
        raise UsageError("--split source: needs images of two sources or more, all named in the column source")
    notes = tuple(f"fold {i} tests {source} and learns from the other sources" for i, source in enumerate(sources, 1))
    return np.array([sources.index(image.source) + 1 for image in images]), notes


def _from_file(images: Sequence[LabelledImage], path: Path) -> NDArray[np.int64]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            told = {row["file"]: int(row["fold"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise UsageError(
            f"--split {path}: cannot be read ({error.strerror}); use one of {', '.join(SPLITS)}, or a CSV file with file,fold"
        ) from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UsageError(f"{path}: is not a split ({error}); it needs the columns file,fold, folds from 1") from error
    unknown = sorted(set(told) - {image.file for image in images})
    if unknown:
        raise UsageError(f"{path}: names {unknown[0]}, which is not among the images, or is of no class; correct the file")
    fold = np.array([told.get(image.file, 0) for image in images], np.int64)
    if fold.min() < 0 or not fold.any():
        raise UsageError(f"{path}: folds are counted from 1 (0: never tested); at least one image needs one")
    empty = sorted(set(range(1, int(fold.max()) + 1)) - set(fold.tolist()))
    if empty:
        raise UsageError(f"{path}: no image is tested in fold {empty[0]}; number the folds without a gap")
    return fold


def _dealt(splitter: StratifiedKFold | StratifiedGroupKFold, strata: NDArray[np.str_], groups: object) -> NDArray[np.int64]:
    folds = splitter.get_n_splits()
    if max(Counter(strata.tolist()).values()) < folds:
        raise UsageError(f"no class has as many images as there are folds ({folds}); use fewer folds")
    fold = np.zeros(len(strata), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes, which `_uneven` tells of
        for number, (_, test) in enumerate(splitter.split(np.zeros(len(strata)), strata, groups), 1):
            fold[test] = number
    return fold


def _uneven(labels: Sequence[str], fold: NDArray[np.int64], folds: int) -> list[str]:
    """A sentence for each class that is not in every fold, or far from its share in one."""
    by_class: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for label, number in zip(labels, fold.tolist(), strict=True):
        by_class[label][number] += 1
    notes = []
    for code in CODES:
        counts = by_class[code]
        if not counts:
            continue
        dealt = [counts[k] for k in range(1, folds + 1)]
        share = sum(dealt) / folds
        if min(dealt) == 0 or max(abs(n - share) for n in dealt) > max(2.0, share / 2):
            notes.append(f"{code} is uneven over the folds: {', '.join(map(str, dealt))} images")
    return notes
