"""Does a model work? Its card, the sha256 of its weights, their fit to the architecture, and what it says of a painted cell."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slidescreen.demo import paint_smear
from slidescreen.detect import DetectSettings
from slidescreen.detector_card import load_detector_card
from slidescreen.detector_model import load_detector_network
from slidescreen.detector_network import network_detector
from slidescreen.engines.network import load_with_features
from slidescreen.errors import ModelError
from slidescreen.geometry import Box, Point, Size
from slidescreen.installed.listing import kind_of
from slidescreen.model import REJECTION, WEIGHTS, load_card, load_rejection, prepare, read_card
from slidescreen.records import PATCH_PX, PATCH_UM, RgbImage

FIELD_PX: Final = 576
FIELD_SEED: Final = 21
"""Paints the cell in the middle, so that a whole patch lies around it."""
NEAR_UM: Final = 3.0


def check_model(folder: Path) -> str:
    """What the model said of a painted cell, in words. Raises ModelError, in one line, for whatever is wrong."""
    if kind_of(read_card(folder)) == "detector":
        return _check_detector(folder)
    card = load_card(folder)
    network = load_with_features(folder, card)
    _require_finite(folder, network.network)
    patch = torch.from_numpy(painted_patch())[None]
    with torch.inference_mode():
        logits, features = network(prepare(patch, card))
        p: NDArray[np.float32] = torch.softmax(logits / card.temperature, dim=1)[0].numpy()
    if p.shape != (len(card.classes),) or not np.isfinite(p).all() or abs(float(p.sum()) - 1) > 1e-3:
        raise ModelError(f"{folder}: gives no probabilities for a painted cell; the model is of no use")
    best = int(p.argmax())
    said = f"a painted myeloblast is {card.classes[best]} with P {p[best]:.2f}"
    rejection = load_rejection(folder, card)
    if rejection is None or card.rejection is None:
        return said
    if len(rejection.weight) != features.shape[1]:
        raise ModelError(
            f"{folder / REJECTION}: is for another network ({len(rejection.weight)} features in place of "
            f"{features.shape[1]}); install the model again"
        )
    score = float(rejection.scores(features.numpy())[0])
    return f"{said}, outlier score {score:.2f} (refused above {card.rejection.threshold:.2f})"


def _check_detector(folder: Path) -> str:
    card = load_detector_card(folder)
    network = load_detector_network(folder, card)
    _require_finite(folder, network)
    detector = network_detector(network, card.um_per_px, card.centre_score, DetectSettings())
    image, x, y = _field()
    um_per_px = PATCH_UM / PATCH_PX
    found = [body for body in detector.find(image, um_per_px) if not body.refusal]
    near = [b for b in found if max(abs(b.centre.x - x), abs(b.centre.y - y)) * um_per_px < NEAR_UM]
    if len(near) != 1:
        raise ModelError(f"{folder}: does not find a painted cell; the model is of no use")
    return f"a painted cell is found, score {near[0].score:.2f}"


def _require_finite(folder: Path, network: nn.Module) -> None:
    for name, values in network.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise ModelError(f"{folder / WEIGHTS}: layer {name} holds numbers that are not finite; the model is of no use")


@cache
def _field() -> tuple[RgbImage, float, float]:
    """A painted field with one myeloblast, and where its centre lies, px."""
    image, (cell,) = paint_smear(Size(FIELD_PX, FIELD_PX), leukocytes={"MYO": 1}, seed=FIELD_SEED)
    return image, cell.centre.x, cell.centre.y


def painted_patch() -> RgbImage:
    """(400, 400, 3) uint8 RGB, 29 um: a painted myeloblast in the middle."""
    image, x, y = _field()
    around = Box.around(Point(x, y), PATCH_PX)
    return image[around.y : around.bottom, around.x : around.right]
