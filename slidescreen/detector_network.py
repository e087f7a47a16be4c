"""The learned detector: an image of known scale in, leukocytes with outline and nucleus out, and what was refused and why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from torch import nn

from slidescreen.detect import Body, DetectSettings
from slidescreen.detector_card import load_detector_card
from slidescreen.detector_model import STRIDE, LeukocyteNet, load_detector_network, split_maps
from slidescreen.engines.network import fold
from slidescreen.geometry import Box, Point
from slidescreen.outlines import PixelMaps, Shape, find_shapes
from slidescreen.records import Outline, RgbImage

STEPS: Final = 8
"""Eighths in which working grids are resampled: `STRIDE * STEPS` px of a grid are whole strides, which is `LATTICE_PX`."""
FINEST_SHARE: Final = 0.6
PLATELET_NUCLEUS: Final = 0.2
"""What has a larger share of nucleus is no platelet, whatever it looks like: small erythroblasts do. Of the bodies learned from
that are called platelets none of 327 platelets has, the largest share is 0.15, and 69 of 102 leukocytes."""
CUT_NUCLEUS: Final = 0.2
"""Least share of nucleus in what is seen of a cell that the image's border cuts."""


@dataclass(frozen=True, slots=True, eq=False)
class NetworkDetector:
    """Detector by network. `nuclei`: nuclei are outlined too; screening wants to know of them how large they are."""

    network: nn.Module
    um_per_px: float
    centre_score: float
    settings: DetectSettings
    nuclei: bool = False

    def find(self, image: RgbImage, um_per_px: float) -> list[Body]:
        """See `Detector`."""
        return self.look(image, um_per_px)()

    def look(self, image: RgbImage, um_per_px: float) -> Callable[[], list[Body]]:
        """See `Detector`.

        The image is resampled to about the network's scale. Working grids (0.18-0.5 um/px) are resampled by a whole number of
        eighths, so that px of images that start on multiples of 128 px are the same whichever image shows them; what is left
        of the difference in scale is at most 10 % and known to the measures. Finer images are brought to the exact scale.
        """
        share = um_per_px / self.um_per_px
        if share >= FINEST_SHARE:
            share = round(STEPS * share) / STEPS
        height, width = image.shape[:2]
        resampled = _resampled(image, share)
        scaled = _padded(resampled)
        maps = self._maps(scaled)

        def draw() -> list[Body]:
            s = self.settings
            shapes = find_shapes(maps, scaled, um_per_px / share, self.centre_score, s.candidate_um2, nuclei=self.nuclei)
            bodies = [_body(shape, share, refusal(shape, s, cut=_cut(shape.box, resampled))) for shape in shapes]
            return [b for b in bodies if b.centre.x < width and b.centre.y < height]

        return draw

    def _maps(self, image: RgbImage) -> PixelMaps:
        with torch.inference_mode():
            x = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(next(self.network.parameters()).dtype)
            maps = split_maps(self.network(x.div_(255)).float())
        centre, kind, offset, masks = (
            np.ascontiguousarray(m[0].numpy()) for m in (maps.centre, maps.kind, maps.offset, maps.masks)
        )
        return PixelMaps(centre[0], kind, offset, masks)


def load_detector(folder: Path, settings: DetectSettings) -> NetworkDetector:
    """The detector of a model folder, its weights checked. Raises ModelError."""
    card = load_detector_card(folder)
    return network_detector(load_detector_network(folder, card), card.um_per_px, card.centre_score, settings)


def network_detector(network: LeukocyteNet, um_per_px: float, centre_score: float, settings: DetectSettings) -> NetworkDetector:
    """Made ready to search: normalisation folded into the convolutions, bfloat16 where the processor computes in it."""
    ready = _folded(network.eval()).to(memory_format=torch.channels_last)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ready = ready.bfloat16()
    return NetworkDetector(ready, um_per_px, centre_score, settings)


def _folded(network: LeukocyteNet) -> nn.Module:
    ready = copy.deepcopy(network).eval()
    fold(ready)
    return ready


def _resampled(image: RgbImage, share: float) -> RgbImage:
    """`share` network px per px of the image; the image is first filled up to whole eighths."""
    if share == 1:
        return image
    height, width = image.shape[:2]
    if share >= FINEST_SHARE:
        more = ((0, -height % STEPS), (0, -width % STEPS), (0, 0))
        image = np.pad(image, more, mode="edge")
        height, width = image.shape[:2]
    size = (max(1, round(width * share)), max(1, round(height * share)))
    method = cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR_EXACT  # plain INTER_LINEAR depends on where a px lies
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def _padded(image: RgbImage) -> RgbImage:
    """White on the right and at the bottom, up to multiples of the stride."""
    height, width = image.shape[:2]
    if height % STRIDE == 0 and width % STRIDE == 0:
        return np.ascontiguousarray(image)
    more = ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
    return np.pad(image, more, constant_values=255)


def _cut(box: Box, image: RgbImage) -> bool:
    """Whether the image's border cuts what lies in the box."""
    height, width = image.shape[:2]
    return box.x <= 1 or box.y <= 1 or box.right >= width - 1 or box.bottom >= height - 1


def _body(shape: Shape, share: float, reason: str) -> Body:
    """A shape in px of the image it was found in, with the reason for which it is no leukocyte, if there is one."""
    left, top = math.floor(shape.box.x / share), math.floor(shape.box.y / share)
    right, bottom = math.ceil(shape.box.right / share), math.ceil(shape.box.bottom / share)
    return Body(
        centre=_scaled(shape.centre, share),
        box=Box(left, top, right - left, bottom - top),
        nucleus_um2=shape.nucleus_um2,
        refusal=reason,
        outline=_outline(shape.outline, share),
        nucleus=tuple(_outline(lobe, share) for lobe in shape.nucleus),
        area_um2=shape.area_um2,
        eccentricity=shape.eccentricity,
        focus=shape.focus,
        score=shape.score,
    )


def refusal(shape: Shape, settings: DetectSettings, *, cut: bool = False) -> str:
    """Why the body is no leukocyte to be typed; empty where it is one. What the image's border has `cut` may be small, and its
    nucleus too."""
    if shape.kind == "platelet" and shape.nucleus_um2 < PLATELET_NUCLEUS * shape.area_um2:
        return "platelet" if shape.area_um2 < settings.giant_platelet_um2 else "giant or aggregated platelets"
    if shape.kind == "artefact" or shape.neutrality > settings.neutral:
        return "artefact (precipitate, dust or ink)"
    if shape.area_um2 < settings.min_cell_um2 and not cut:
        return "too small (platelet or precipitate)"
    if shape.area_um2 > settings.max_cell_um2:
        return "too large (clump)"
    if shape.nucleus_um2 < min(settings.bare_um2, CUT_NUCLEUS * shape.area_um2 if cut else settings.bare_um2):
        return "no nucleus"
    return ""


def _scaled(point: Point, share: float) -> Point:
    return Point(point.x / share, point.y / share)


def _outline(outline: Outline, share: float) -> Outline:
    return outline if share == 1 else tuple(_scaled(p, share) for p in outline)
