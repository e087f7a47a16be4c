"""Which image is tested in which fold."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from slidescreen.errors import UsageError
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.images import LabelledImage

SplitKind = Literal["stratified", "patient"]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """`fold[i]`: the fold, from 1, in which image i is tested and in no other learned from. `notes`: where the split is not
    what one would wish, in words."""

    kind: SplitKind
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
    images: Sequence[LabelledImage], kind: SplitKind, folds: int, seed: int, twin_of: Mapping[int, int] | None = None
) -> Split:
    """Deal images of the 15 classes out to folds, each class and each source as evenly as can be.

    stratified: images one by one, as Matek et al. 2019. patient: patients as a whole; an image without a patient is its own.
    `twin_of`: index of an image with the same px as an earlier one -> that one's; it goes to the same fold.

    Raises UsageError when there is one class only, or a patient split is asked for with fewer patients than folds.
    """
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2 are needed, to learn from one and test on the other")
    labels = [image.label for image in images]
    if len(set(labels)) < 2:
        raise UsageError(f"all {len(images)} images are of class {labels[0] if labels else '-'}; at least 2 classes are needed")
    if len(images) < folds:
        raise UsageError(f"{len(images)} images cannot be dealt out to {folds} folds; use fewer folds")
    strata = np.array([f"{image.label} {image.source}" for image in images])
    if kind == "patient":
        fold, notes = _by_patient(images, strata, folds, seed)
    else:
        fold, notes = _dealt(StratifiedKFold(folds, shuffle=True, random_state=seed), strata, None), ()
    for twin, first in (twin_of or {}).items():
        fold[twin] = fold[first]
    return Split(kind, folds, fold, (*notes, *_uneven(labels, fold, folds)))


def _by_patient(
    images: Sequence[LabelledImage], strata: NDArray[np.str_], folds: int, seed: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    patients = {image.patient for image in images} - {""}
    alone = sum(not image.patient for image in images)
    if len(patients) < folds:
        raise UsageError(
            f"{len(patients)} patients cannot be dealt out to {folds} folds; name them in the column patient, use fewer folds, "
            "or --split stratified"
        )
    groups = np.array([f"patient {im.source} {im.patient}" if im.patient else f"image {i}" for i, im in enumerate(images)])
    known = np.array([bool(image.patient) for image in images])
    fold = np.zeros(len(images), np.int64)
    fold[known] = _dealt(StratifiedGroupKFold(folds, shuffle=True, random_state=seed), strata[known], groups[known])
    notes: tuple[str, ...] = ()
    if alone:
        fold[~known] = _dealt(StratifiedKFold(folds, shuffle=True, random_state=seed), strata[~known], None)
        notes = (f"{alone} images name no patient and are dealt out one by one: cells of one person may lie in several folds",)
    return fold, notes


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
