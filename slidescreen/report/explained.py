"""The page of `slidescreen explain`: pictures of cells beside what their scores are sensitive to."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.report.images import data_uris, overlay

BAR_UM = 5.0
PAGE_SIDE = 300
"""Height in px of a pair on the page; the PNG files keep all px."""
PAGE_BUDGET = 12_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedCell:
    """`likeliest`: the three likeliest classes (code, probability). `said`: label or status in the result, "" for an image.
    `pair` (300, 606, 3) uint8 RGB: picture and overlay at the size of the page."""

    name: str
    said: str
    likeliest: tuple[tuple[str, float], ...]
    p_blast: float
    p_atypical: float
    pair: NDArray[np.uint8]


def side_by_side(rgb: NDArray[np.uint8], sensitivity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(400, 400, 3) picture and (400, 400) uint8 map -> (400, 808, 3): picture | overlay, a bar of 5 um in each."""
    halves = [rgb.copy(), overlay(rgb, sensitivity)]
    length, end = round(BAR_UM * PATCH_PX / PATCH_UM), PATCH_PX - 16
    for half in halves:
        cv2.rectangle(half, (end - length - 2, end - 8), (end + 2, end), (255, 255, 255), -1)
        cv2.rectangle(half, (end - length, end - 6), (end, end - 2), (0, 0, 0), -1)
    return np.concatenate([halves[0], np.full((PATCH_PX, 8, 3), 255, np.uint8), halves[1]], axis=1)


def page_picture(pair: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A pair at the size it has on the page."""
    width = round(pair.shape[1] * PAGE_SIDE / pair.shape[0])
    return np.asarray(cv2.resize(pair, (width, PAGE_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def page_pictures(cells: list[ExplainedCell]) -> list[str]:
    """The pairs as data URIs."""
    return list(data_uris({i: cell.pair for i, cell in enumerate(cells)}, PAGE_BUDGET).values())
