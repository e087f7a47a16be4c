"""What a release is fitted and measured on: outputs of the network for leukocytes that it has not seen, for a sample of those
that it has, and for what is no leukocyte, each in two halves."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines import Outputs
from slidescreen.training.classifier.cutouts import (
    CAMERAS,
    LEUKOCYTES,
    OUT_OF_FOCUS,
    Cutout,
    blurred,
    cut_leukocytes,
    cut_strangers,
)
from slidescreen.training.classifier.halves import Halves, halve
from slidescreen.training.classifier.images import LabelledImage
from slidescreen.training.classifier.outputs import Looks, cut, named
from slidescreen.training.classifier.rejecting import Lesson

KNOWN: Final = 2000
"""Images of the training that rejection is fitted on, at most."""
BLURRED: Final = 400
"""Unseen images that are put out of focus, at most."""
STILL_READABLE, BETWEEN, _ = OUT_OF_FOCUS.values()
"""Kinds of blur: taken for leukocytes when fitting; never fitted on. The third is taken for strangers."""
FITTED_LEUKOCYTES: Final = frozenset(LEUKOCYTES.format(camera) for camera in CAMERAS)
"""Where strangers were cut from, leukocytes must be too; those of the other cameras are new to the score."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Pictures of one kind, and which half each belongs to. `fitted`: whether rejection may be fitted on it."""

    outputs: Outputs
    halves: Halves
    fitted: bool = True

    def part(self, half: int | None) -> Outputs:
        """The outputs of one half, 0 or 1, or of both."""
        return self.outputs if half is None else chosen(self.outputs, self.halves.second == bool(half))


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """`images`, `labels` (columns of the model's classes), `unseen`: leukocytes that the network has not learned from. `known`,
    `known_labels`: some that it has. `others`: leukocytes of other cameras and slightly blurred ones, by kind. `strangers`:
    what is none, by kind."""

    images: Sequence[LabelledImage]
    labels: NDArray[np.int64]
    unseen: Group
    known: Outputs
    known_labels: NDArray[np.int64]
    others: Mapping[str, Group]
    strangers: Mapping[str, Group]

    def lesson(self, half: int | None, without: Collection[str] = ()) -> Lesson:
        """What rejection is fitted on: of each set one half, or all; strangers of the kinds `without` left out."""
        others = [g.part(half) for g in self.others.values() if g.fitted]
        strangers = {kind: g.part(half) for kind, g in self.strangers.items() if g.fitted and kind not in without}
        strangers = {kind: part for kind, part in strangers.items() if len(part.logits)}
        return Lesson(self.known, self.known_labels, self.unseen.part(half), joined(others, self.known), strangers)


def gather(
    looks: Looks,
    classes: Sequence[str],
    unseen: Sequence[LabelledImage],
    known: Sequence[LabelledImage],
    strangers: Sequence[LabelledImage],
    fields: Path | None,
) -> Material:
    """Run the network over everything. `strangers`: images of label `-`. `fields`: folder of labelled fields, if there is."""
    known = _spread(known, KNOWN)
    halves = halve([_group(image) for image in unseen])
    kinds: dict[str, Group] = {}
    for kind in sorted({_kind(image) for image in strangers}):
        own = [image for image in strangers if _kind(image) == kind]
        outputs = looks.at(f"strangers-{len(kinds)}", named(own), cut(own))
        kinds[kind] = Group(outputs, halve([_group(image) for image in own]))
    others: dict[str, Group] = {}
    for kind, group in _blurred(looks, unseen, halves).items():
        (others if kind == STILL_READABLE else kinds)[kind] = group
    if fields is not None:
        kinds |= _cut_from(looks, cut_strangers(fields), "cut-strangers")
        others |= _cut_from(looks, cut_leukocytes(fields), "cut-leukocytes")
    return Material(
        unseen,
        np.array([classes.index(image.label) for image in unseen]),
        Group(looks.at("unseen", named(unseen), cut(unseen)), halves),
        looks.at("known", named(known), cut(known)),
        np.array([classes.index(image.label) for image in known]),
        others,
        kinds,
    )


def chosen(outputs: Outputs, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Outputs:
    """Some rows."""
    return Outputs(outputs.logits[rows], outputs.features[rows])


def joined(parts: Sequence[Outputs], like: Outputs) -> Outputs:
    """One after the other; no rows, as wide as `like`, for no parts."""
    return Outputs(*(np.concatenate(each) for each in zip(*parts, chosen(like, np.zeros(0, np.int64)), strict=True)))


def _blurred(looks: Looks, unseen: Sequence[LabelledImage], halves: Halves) -> dict[str, Group]:
    some = _spread(range(len(unseen)), BLURRED)
    names = named([unseen[i] for i in some])
    found = {}
    for sigma, kind in OUT_OF_FOCUS.items():
        pixels = (blurred(patch, sigma) for patch in cut(unseen[i] for i in some))
        outputs = looks.at(f"blurred-{sigma:g}", names, pixels)
        found[kind] = Group(outputs, Halves(halves.second[list(some)]), fitted=kind != BETWEEN)
    return found


def _cut_from(looks: Looks, cutouts: Iterable[Cutout], name: str) -> dict[str, Group]:
    """Pictures from fields by kind; those of cameras whose red cells are not labelled are measured only."""
    every = list(cutouts)
    found = {}
    for number, kind in enumerate(sorted({c.kind for c in every})):
        own = [c for c in every if c.kind == kind]
        outputs = looks.at(
            f"{name}-{number}",
            [f"{c.group} {hashlib.sha256(c.pixels.tobytes()).hexdigest()}" for c in own],
            (c.pixels for c in own),
        )
        fitted = kind in FITTED_LEUKOCYTES or name != "cut-leukocytes"
        found[kind] = Group(outputs, halve([c.group for c in own]), fitted)
    return found


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


def _group(image: LabelledImage) -> str:
    return f"{image.source} {image.patient}" if image.patient else f"image {image.file}"


def _kind(image: LabelledImage) -> str:
    return f"{image.source or 'source unnamed'}: {image.source_label or 'no leukocyte'}"
