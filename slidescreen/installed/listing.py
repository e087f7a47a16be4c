"""Which models there are: those that come with slidescreen and those that the user installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slidescreen.detector_card import ARCHITECTURE, DEFAULT_DETECTOR
from slidescreen.errors import ModelError
from slidescreen.model import ARCHITECTURES, DEFAULT_MODEL, model_folders, models_folder, read_card

Kind = Literal["classifier", "detector", "unknown"]


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model folder. `name` is what `--model` takes. `shipped`: it comes with slidescreen. `default`: it is what is taken
    when none is named. `card`: what `card.json` says, unchecked; empty where it is not readable."""

    name: str
    folder: Path
    kind: Kind
    shipped: bool
    default: bool
    card: Mapping[str, Any]


def list_models() -> list[InstalledModel]:
    """Every model there is, those that come with slidescreen first, by name; no weights are read."""
    return [describe(folder) for folder in model_folders()]


def describe(folder: Path) -> InstalledModel:
    """What is known of a model folder without reading its weights."""
    try:
        card: Mapping[str, Any] = read_card(folder)
    except ModelError:
        card = {}
    kind = kind_of(card)
    shipped = folder.parent == models_folder()
    default = shipped and folder.name == {"classifier": DEFAULT_MODEL, "detector": DEFAULT_DETECTOR}.get(kind)
    return InstalledModel(folder.resolve().name, folder, kind, shipped, default, card)


def kind_of(card: Mapping[str, Any]) -> Kind:
    """What a card is the card of, by its architecture."""
    architecture = card.get("architecture")
    if architecture == ARCHITECTURE:
        return "detector"
    return "classifier" if architecture in ARCHITECTURES else "unknown"
