"""The card of a leukocyte detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slidescreen.errors import ModelError
from slidescreen.model import CARD, read_card

DEFAULT_DETECTOR: Final = "leukocyte-detector"
ARCHITECTURE: Final = "slidescreen.LeukocyteNet"


@dataclass(frozen=True, slots=True)
class DetectorCard:
    """What the detector is. `um_per_px`: the scale it works at. `sha256` of the weights. `centre_score`: peaks of the centre
    map below this are no bodies, in [0, 1]. `measured`: tables of results, by name."""

    name: str
    um_per_px: float
    centre_score: float
    sha256: str
    training_data: str
    licence: str
    measured: Mapping[str, Any]


def load_detector_card(folder: Path) -> DetectorCard:
    """Read and check `card.json`. Raises ModelError naming what is wrong."""
    path, data = folder / CARD, read_card(folder)
    try:
        if data["architecture"] != ARCHITECTURE:
            raise ModelError(f"{path}: architecture {data['architecture']!r} is not {ARCHITECTURE}; give a detector's folder")
        return DetectorCard(
            name=str(data["name"]),
            um_per_px=float(data["um_per_px"]),
            centre_score=float(data["centre_score"]),
            sha256=str(data["sha256"]),
            training_data=str(data["training_data"]),
            licence=str(data["licence"]),
            measured=dict(data["measured"]),
        )
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing; complete the card") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a detector's card ({error}); install it again") from error
