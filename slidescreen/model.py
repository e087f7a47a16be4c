"""Model cards, weights that are checked before use, and the preprocessing that training and screening share.

A model is a folder with `card.json` and `weights.safetensors`, and `rejection.safetensors` where it can tell what is no
leukocyte of its classes. Pickled weights are never loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError

from slidescreen.atomic import making_folder
from slidescreen.errors import ModelError, OutputError
from slidescreen.records import PATCH_UM, ModelInfo, Thresholds
from slidescreen.rejection import Rejection, read_rejection, save_rejection
from slidescreen.taxonomy import CODES

if TYPE_CHECKING:
    import torch
    from torch import nn

DEFAULT_MODEL: Final = "efficientnet-lite0-160"
CARD: Final = "card.json"
WEIGHTS: Final = "weights.safetensors"
REJECTION: Final = "rejection.safetensors"
ARCHITECTURES: Final = ("resnext50_32x4d", "efficientnet_lite0", "matek2019", "sequential")
"""Those of `networks.NETWORKS`, known without loading torch."""
FOR_READERS: Final = ("images", "balanced accuracy", "blast AUC", "atypical AUC", "ECE")
"""Of what was measured, that which a report tells; all of it where a card has none of these."""
PICKLE_SUFFIXES: Final = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"})


@dataclass(frozen=True, slots=True)
class RejectionCard:
    """`sha256` of `rejection.safetensors`; a cell whose score lies above `threshold` is no leukocyte of the classes."""

    sha256: str
    threshold: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is and how it wants its input.

    `architecture`: a name of `networks.NETWORKS`. `classes`: the 15 codes in the order of the outputs. `patch_um`: side of the
    square it sees. `input_px`: side of the network's input. `mean`, `std`: per RGB channel, of px / 255. `sha256` of the
    weights file. `measured`: results on images that the model had not seen, by name; tables among them are for people.
    `temperature`: by which logits are divided before softmax (Guo et al. 2017); 1 where the card has no `calibration`.
    `thresholds`: from which P on a cell is a blast, and atypical; 0.5 each where the card names no `decision`.
    `rejection`: None where the model cannot tell what is no leukocyte of its classes. `limits`: what it cannot be trusted with.
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    patch_um: float
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    training_data: str
    licence: str
    measured: Mapping[str, Any]
    temperature: float = 1.0
    thresholds: Thresholds = field(default_factory=Thresholds)
    rejection: RejectionCard | None = None
    limits: str = ""

    @property
    def info(self) -> ModelInfo:
        """What results record of the model."""
        said = {k: v for k, v in self.measured.items() if isinstance(v, int | float | str)}
        said = {k: said[k] for k in FOR_READERS if k in said} or said
        results = ", ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {v:g}" for k, v in said.items())
        rejects = self.rejection is not None
        return ModelInfo(self.name, self.sha256, self.classes, results, self.identity, self.temperature, rejects, self.limits)

    @property
    def identity(self) -> str:
        """64 hex digits that change with anything on which its answers depend; the name and what was measured do not count."""
        parts = (self.architecture, self.classes, self.input_px, self.mean, self.std, self.sha256, self.temperature)
        rejection = self.rejection and (self.rejection.sha256, self.rejection.threshold)
        decision = (self.thresholds.blast, self.thresholds.atypical)
        return hashlib.sha256(repr((parts, rejection, decision)).encode()).hexdigest()


def models_folder() -> Path:
    """The folder of the models that come with slidescreen: in the installed package, else beside it in a source tree."""
    installed = Path(str(resources.files("slidescreen"))) / "models"
    return installed if installed.is_dir() else installed.parent.parent / "models"


def user_models_folder() -> Path:
    """The folder of the models that the user installed: $SLIDESCREEN_MODELS, else in the XDG data home. It need not exist."""
    if chosen := os.environ.get("SLIDESCREEN_MODELS"):
        return Path(chosen)
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        data = Path(os.path.expanduser("~/.local/share"))  # noqa: PTH111  # Path.expanduser fails where there is no home
    return data / "slidescreen" / "models"


def find_model(name_or_folder: str) -> Path:
    """The folder of a model, given its name or a path; what comes with slidescreen goes before what the user installed.

    Raises ModelError with the names of the classifiers there are.
    """
    for folder in (Path(name_or_folder), *(models / name_or_folder for models in (models_folder(), user_models_folder()))):
        if (folder / CARD).is_file():
            return folder
    if Path(name_or_folder).is_dir():
        raise ModelError(f"{name_or_folder}: a model folder needs {CARD} and {WEIGHTS}; {CARD} is missing")
    known = ", ".join(sorted(folder.name for folder in model_folders() if _is_classifier(folder))) or "none"
    raise ModelError(f"{name_or_folder}: no such model; give a model folder or one of: {known}")


def model_folders() -> list[Path]:
    """The folders that hold a card: those that come with slidescreen by name, then the user's whose names are not taken."""
    found: dict[str, Path] = {}
    for models in (models_folder(), user_models_folder()):
        for card in sorted(models.glob(f"[!.]*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)
    return list(found.values())


def _is_classifier(folder: Path) -> bool:
    try:
        return read_card(folder).get("architecture") in ARCHITECTURES
    except ModelError:
        return False


def read_card(folder: Path) -> dict[str, Any]:
    """What `card.json` says, unchecked. Raises ModelError when it is no JSON object."""
    path = folder / CARD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as a model card ({error}); install the model again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: is not a model card; install the model again")
    return data


def load_card(folder: Path) -> ModelCard:
    """Read and check `card.json`. Raises ModelError naming the field that is wrong."""
    path, data = folder / CARD, read_card(folder)
    if "architecture" in data and data["architecture"] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path}: architecture {data['architecture']!r} is not known (known: {known}); give a classifier")
    try:
        card = _card(folder.resolve().name, data)
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing; complete the card") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path}: {error}; correct the card") from None
    return card


def _card(name: str, data: Mapping[str, Any]) -> ModelCard:
    classes = tuple(str(c) for c in data["classes"])
    if sorted(classes) != sorted(CODES):
        missing = " ".join(sorted(set(CODES) - set(classes)))
        extra = " ".join(sorted(set(classes) - set(CODES)))
        raise ValueError(f"classes must be the 15 codes, each once (missing: {missing or 'none'}, unknown: {extra or 'none'})")
    if float(data["patch_um"]) != PATCH_UM:
        raise ValueError(f"patch_um {data['patch_um']} must be {PATCH_UM}")
    input_px = int(data["input_px"])
    if not 32 <= input_px <= 1024:
        raise ValueError(f"input_px {input_px} must lie in 32-1024")
    return ModelCard(
        name=str(data.get("name", name)),
        architecture=str(data["architecture"]),
        classes=classes,
        patch_um=PATCH_UM,
        input_px=input_px,
        mean=_three(data["mean"], "mean", positive=False),
        std=_three(data["std"], "std", positive=True),
        sha256=str(data["sha256"]),
        training_data=str(data["training_data"]),
        licence=str(data["licence"]),
        measured=dict(data["measured"]),
        temperature=_temperature(data.get("calibration")),
        thresholds=_thresholds(data.get("decision")),
        limits=str(data.get("limits", "")),
        rejection=_rejection(data.get("rejection")),
    )


def _temperature(calibration: Mapping[str, Any] | None) -> float:
    temperature = 1.0 if calibration is None else float(calibration["temperature"])
    if not 0.01 <= temperature <= 100:
        raise ValueError(f"calibration: temperature {temperature} must lie in 0.01-100")
    return temperature


def _thresholds(decision: Mapping[str, Any] | None) -> Thresholds:
    if decision is None:
        return Thresholds()
    thresholds = Thresholds(float(decision["blast"]), float(decision["atypical"]))
    if not (0 < thresholds.blast <= 1 and 0 < thresholds.atypical <= 1):
        raise ValueError("decision: thresholds of blast and atypical must lie above 0 and not above 1")
    return thresholds


def _rejection(rejection: Mapping[str, Any] | None) -> RejectionCard | None:
    if rejection is None:
        return None
    threshold = float(rejection["threshold"])
    if not math.isfinite(threshold):
        raise ValueError("rejection: threshold must be a number")
    return RejectionCard(str(rejection["sha256"]), threshold)


def _three(values: Any, name: str, *, positive: bool) -> tuple[float, float, float]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3 or not all(math.isfinite(v) for v in numbers) or (positive and min(numbers) <= 0):
        raise ValueError(f"{name} must be three {'positive ' if positive else ''}numbers")
    return (numbers[0], numbers[1], numbers[2])


def check_weights(folder: Path, sha256: str) -> Path:
    """The weights file, after its sha256 was found to be the card's. Raises ModelError otherwise, or where the folder holds
    pickled weights, which can run code when loaded."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickled:
        raise ModelError(f"{folder}: holds {pickled[0]}, a pickle that can run code; remove it, only {WEIGHTS} is used")
    return _checked(folder / WEIGHTS, sha256, "the weights were")


def _checked(path: Path, sha256: str, what: str) -> Path:
    try:
        found = _sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); install the model again") from error
    if found != sha256:
        raise ModelError(
            f"{path}: sha256 {found[:12]}... is not the card's {sha256[:12]}...; {what} altered or damaged: "
            "install the model again"
        )
    return path


def load_rejection(folder: Path, card: ModelCard) -> Rejection | None:
    """The parameters of rejection, after their sha256 was found to be the card's; None where the model has none."""
    if card.rejection is None:
        return None
    return read_rejection(_checked(folder / REJECTION, card.rejection.sha256, "the parameters of rejection were"))


def load_network(folder: Path, card: ModelCard) -> nn.Module:
    """The network with its weights, float32, in evaluation mode, on the CPU. Raises ModelError when they do not fit."""
    from slidescreen.networks import build_network, load_weights

    path = check_weights(folder, card.sha256)
    network = build_network(card.architecture, len(card.classes))
    load_weights(network, path, card.architecture)
    network.eval()
    return network


def write_model(
    folder: Path,
    network: nn.Module,
    card: Mapping[str, Any],
    rejection: Rejection | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """A new model folder, whole or not at all: weights, parameters of rejection, `card` with the sha256 of both, and other
    `files` by name.

    `card` holds every other field of `card.json`. Raises OutputError where the folder is there already or cannot be written.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise OutputError(f"{folder}: is there already; choose another folder with -o, or remove it")
    try:
        with making_folder(folder) as partial:
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, partial / WEIGHTS)
            (partial / WEIGHTS).chmod(0o644)
            whole = {**card, "sha256": _sha256(partial / WEIGHTS)}
            if rejection is not None:
                save_rejection(partial / REJECTION, rejection)
                (partial / REJECTION).chmod(0o644)
                whole["rejection"] = {**card["rejection"], "sha256": _sha256(partial / REJECTION)}
            for name, content in {CARD: (json.dumps(whole, indent=1) + "\n").encode(), **files}.items():
                (partial / name).write_bytes(content)
            load_card(partial)
    except SafetensorError as error:
        raise OutputError(f"{folder}: cannot be written ({error}); choose another folder with -o") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare(patches: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """(n, 400, 400, 3) uint8 RGB -> (n, 3, input_px, input_px) float32 as the card asks for it, on the same device."""
    import torch

    x = patches.permute(0, 3, 1, 2).float().div_(255)
    if x.shape[-1] != card.input_px:
        x = torch.nn.functional.interpolate(x, size=(card.input_px, card.input_px), mode="bilinear", antialias=True)
    return torch.stack([(x[:, i] - card.mean[i]) / card.std[i] for i in range(3)], dim=1)
