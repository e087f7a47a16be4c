"""Looks at every image of a labelled set before anything is learned from it: readable, how large, seen before?"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidescreen.errors import UsageError
from slidescreen.overlap import usable_cores
from slidescreen.slide import read_image, why_unreadable
from slidescreen.training.classifier.images import LabelledImage, count_labels

HASH_SIDE: Final = 16
NEAR_BITS: Final = 20
"""Perceptual hashes of 256 bits that differ in no more are near-duplicates. Of different cells they differ in about 100 (200
real ones: 74 at least); of one image saved again as JPEG of quality 50, made 10 % brighter or moved by 1 px in 14 at most."""
BLOCK: Final = 2048


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two images that look alike and bear different labels; of 256 bits of their hashes `bits` differ."""

    first: LabelledImage
    second: LabelledImage
    bits: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a set of images holds. `duplicates`: groups with the same px. `near`: near-duplicates across labels that are no
    duplicates. `unreadable`: file and reason. `sizes`: (width, height) -> images."""

    images: Sequence[LabelledImage]
    sizes: Mapping[tuple[int, int], int]
    unreadable: Sequence[tuple[LabelledImage, str]]
    duplicates: Sequence[tuple[LabelledImage, ...]]
    near: Sequence[NearPair]
    annotations: Mapping[str, int] = field(default_factory=dict)

    @property
    def contradictions(self) -> list[tuple[LabelledImage, ...]]:
        """The groups of duplicates with more than one label."""
        return [group for group in self.duplicates if len({image.label for image in group}) > 1]

    @property
    def sound(self) -> bool:
        """Whether every image can be read and none has two labels."""
        return not self.unreadable and not self.contradictions


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What one image showed: (width, height), sha256 of its px, hash of (256,) bool; or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    bits: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(HASH_SIDE**2, np.bool_))
    problem: str = ""


def check_images(images: Sequence[LabelledImage], progress: Callable[[int], None] = lambda _done: None) -> DataReport:
    """Read every image once. `progress` is told how many are done."""
    looks: list[_Look] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for done, look in enumerate(pool.map(_look, images), 1):
            looks.append(look)
            progress(done)
    readable = [(image, look) for image, look in zip(images, looks, strict=True) if not look.problem]
    same: defaultdict[str, list[LabelledImage]] = defaultdict(list)
    for image, look in readable:
        same[look.digest].append(image)
    return DataReport(
        images=images,
        sizes=Counter(look.size for _, look in readable),
        unreadable=[(image, look.problem) for image, look in zip(images, looks, strict=True) if look.problem],
        duplicates=[tuple(group) for group in same.values() if len(group) > 1],
        near=_near_pairs(readable),
        annotations=count_labels(images),
    )


def _look(image: LabelledImage) -> _Look:
    try:
        pixels = read_image(image.path)
    except (OSError, ValueError, SyntaxError) as error:
        return _Look(problem=why_unreadable(error, image.path))
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    bits = imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE).hash.ravel()
    return _Look((pixels.shape[1], pixels.shape[0]), digest, bits)


def require_readable(unreadable: Sequence[tuple[LabelledImage, str]]) -> None:
    """Raises UsageError naming the first of images that cannot be read, and how many there are."""
    if unreadable:
        image, reason = unreadable[0]
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise UsageError(f"{image.path}{more}: not an image that can be read ({reason}); mend it or leave it out")


def _near_pairs(readable: Iterable[tuple[LabelledImage, _Look]]) -> list[NearPair]:
    """Every pair of different labels whose hashes nearly agree, nearest first; block by block, so that memory stays small."""
    kept = list(readable)
    if not kept:
        return []
    signs = np.stack([np.where(look.bits, 1.0, -1.0) for _, look in kept]).astype(np.float32)
    labels = np.array([image.label for image, _ in kept])
    length = signs.shape[1]
    pairs = []
    for start in range(0, len(kept), BLOCK):
        agree = signs[start : start + BLOCK] @ signs.T
        rows, columns = np.nonzero(agree >= length - 2 * NEAR_BITS)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            differ = labels[row] != labels[column] and kept[row][1].digest != kept[column][1].digest
            if row < column and differ:
                bits = round((length - float(agree[row - start, column])) / 2)
                pairs.append(NearPair(kept[row][0], kept[column][0], bits))
    return sorted(pairs, key=lambda pair: pair.bits)
