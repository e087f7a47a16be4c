"""From training data to the detector's model folder: train, choose the threshold, write weights and card."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from slidescreen.atomic import replacing, write_text
from slidescreen.detect import DetectSettings
from slidescreen.detector_card import ARCHITECTURE, DEFAULT_DETECTOR
from slidescreen.detector_model import NETWORK_UM_PER_PX, LeukocyteNet, flops_per_px, move_borders
from slidescreen.detector_network import NetworkDetector, network_detector
from slidescreen.errors import UsageError
from slidescreen.model import CARD, WEIGHTS
from slidescreen.training.detector.data import CAMERAS, MASK_SETS, list_masks
from slidescreen.training.detector.fit import TrainSettings, load_sources, train, tuning_fields
from slidescreen.training.detector.measure import choose_score, dice_of_masks

log = logging.getLogger(__name__)

SHIFTS: Final = (0.0, -0.5, 0.5, -1.0, 1.0, 1.5)
"""What is tried in moving the borders, added to logits; the first of equals is taken."""
SURE: Final = 0.3
"""Centre score in doing so."""

DATA: Final = (
    "TXL-PBC fields with boxes (MIT): bccd, bcd, raabin, cellavision, training split but every eighth field of each camera; "
    "expert nucleus and cytoplasm masks of segmentation_WBC (Zheng et al. 2018), every fifth kept for measuring; images of "
    "single cells, as bodies of unknown outline, where given: AML-Cytomorphology_LMU (Matek et al. 2019), PBC (Acevedo et al. "
    "2020), deepapl (Sidhom et al. 2021)."
)
LICENCE: Final = (
    "Weights: research use. Data: TXL-PBC MIT; segmentation_WBC's repository is under GPL-3, its masks were used to train and "
    "measure and are not redistributed; AML-Cytomorphology_LMU CC BY 3.0; PBC CC BY 4.0 (as remembered, to be checked); "
    "deepapl states a copyright and no licence, research use."
)
LIMITS: Final = (
    "Outlines were learned from boxes on smears and from 160 outlined cells of two laboratories; dust, ink, bubbles and "
    "precipitate were painted, not seen; giant platelets are enlarged small ones with painted grains, two of nine real ones of "
    "6 um and more are taken for leukocytes. Not measured on whole scans of a laboratory outside the training sources. Not for "
    "diagnosis."
)


def train_detector(
    fields: Path,
    masks: Path,
    cells: Path | None,
    settings: TrainSettings,
    work: Path,
    tell: Callable[[int], None] = lambda step: None,
) -> tuple[LeukocyteNet, float]:
    """Train with checkpoints in `work`, then fit borders to all masks but those held back, for the others kept aside are few,
    and the centre score to training fields kept aside, those of a camera that is left out not looked at. Raises UsageError for
    data or settings that cannot be used."""
    if settings.left_out and settings.left_out not in CAMERAS:
        raise UsageError(f"{settings.left_out}: no such camera; use one of {', '.join(CAMERAS)}")
    network = train(load_sources(fields, masks, cells, settings.left_out), settings, work, tell)
    network = fit_borders(network, [*list_masks(masks, "learn"), *list_masks(masks, "tune")])
    kept = [f for f in tuning_fields(fields) if f.camera != settings.left_out]
    score = choose_score(kept, lambda s: network_detector(network, NETWORK_UM_PER_PX, s, DetectSettings()))
    return network, score


def fit_borders(network: LeukocyteNet, masks: Sequence[tuple[Path, Path, float]]) -> LeukocyteNet:
    """The network with the borders of cells, then of nuclei, moved to where they agree best with these masks, sets alike."""
    sets = [own for name in MASK_SETS if (own := [m for m in masks if m[0].name.startswith(f"set{name}_")])]

    def dice(body: float, nucleus: float) -> NDArray[np.float64]:
        detector = replace(make_detector(move_borders(network, body, nucleus), SURE), nuclei=True)
        return np.asarray(
            np.mean([np.mean(dice_of_masks(own, lambda *_: detector, refused=True), axis=0) for own in sets], axis=0)
        )

    body = max(SHIFTS, key=lambda s: dice(s, 0.0)[0])
    nucleus = max(SHIFTS, key=lambda s: dice(body, s)[1])
    log.info("borders moved by %g (cells) and %g (nuclei)", body, nucleus)
    return move_borders(network, body, nucleus)


def make_detector(network: LeukocyteNet, score: float) -> NetworkDetector:
    """The detector as it would be shipped."""
    return network_detector(network, NETWORK_UM_PER_PX, score, DetectSettings())


def write_detector(folder: Path, network: LeukocyteNet, score: float, settings: TrainSettings) -> None:
    """Weights and card; what an older card says was measured is dropped, since these are other weights."""
    with replacing(folder / WEIGHTS) as partial:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, partial)
        sha256 = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial.chmod(0o644)
    write_card(
        folder,
        {
            "name": DEFAULT_DETECTOR,
            "architecture": ARCHITECTURE,
            "um_per_px": NETWORK_UM_PER_PX,
            "centre_score": score,
            "sha256": sha256,
            "flops_per_px": round(flops_per_px()),
            "training": asdict(settings),
            "training_data": DATA,
            "licence": LICENCE,
            "measured": {},
            "limits": LIMITS,
        },
    )


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """`card.json`, whole or not at all."""
    write_text(folder / CARD, json.dumps(card, indent=1) + "\n")


def record_measures(folder: Path, measured: Mapping[str, Any]) -> None:
    """Put tables of results into a card, beside or in place of those it holds."""
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card["measured"] = card["measured"] | dict(measured)
    write_card(folder, card)
