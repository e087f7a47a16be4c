"""How a classifier is trained: small TOML files, read into one frozen record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from slidescreen.errors import UsageError
from slidescreen.networks import NETWORKS
from slidescreen.settings_file import from_table, read_toml

RECIPES: Final = "recipes"
UNIT: Final = (
    *("learning_rate", "weight_decay", "class_balance", "source_balance", "source_prior", "first_share"),
    *("label_smoothing", "mixup", "average", "scale", "colour", "stain", "grey", "blur"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`input_px`: side of the network's input, for 29 um. An epoch shows `per_class` images for each class there is.
    `patience`: epochs without a fall of the training loss by 1 % after which training ends; 0: never.

    Classes of n images share an epoch as n ** (1 - `class_balance`): 1 shows all equally often, 0 as often as they come. So do
    the sources within a class, by `source_balance`.

    `source_prior`: by how much each logit is raised, in training, by the logarithm of how often the image's source shows that
    class. At 1 nothing is gained by telling the source from the colour of its ground: what that says of the class is given away
    (logit adjustment, Menon et al. 2021, taken source by source). What a source never shows it then teaches nothing about.

    What follows the seed goes beyond Matek et al. 2019 and is off by default. `start`: a model (name or folder) or ImageNet
    weights (a safetensors file) to start from. `first_share` of the steps see images of `first_px`, coarser ones than
    `input_px`. `average`: decay of the moving average of the weights that is kept in place of the last ones, 0: none. `mixup`:
    parameter of the Beta distribution. `scale`: largest change of size as a share. `colour`: largest change of brightness,
    contrast and of each channel's gain. `stain`: largest change of each channel's optical density. `grey`: share of images
    shown without colour. `blur`: largest weight of a blurred (or, negative, sharpened) copy.
    """

    architecture: str = "resnext50_32x4d"
    input_px: int = 400
    epochs: int = 15
    per_class: int = 10_000
    patience: int = 2
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    class_balance: float = 1.0
    source_balance: float = 0.0
    source_prior: float = 0.0
    seed: int = 0
    start: str = ""
    first_px: int = 0
    first_share: float = 0.0
    label_smoothing: float = 0.0
    average: float = 0.0
    mixup: float = 0.0
    scale: float = 0.0
    colour: float = 0.0
    stain: float = 0.0
    grey: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture not in NETWORKS:
            raise UsageError(f"architecture {self.architecture!r} is unknown; use one of {', '.join(NETWORKS)}")
        if not 32 <= self.input_px <= 1024:
            raise UsageError(f"input_px = {self.input_px}: must lie in 32-1024")
        if self.first_share and not 32 <= self.first_px <= self.input_px:
            raise UsageError(f"first_px = {self.first_px}: must lie between 32 and input_px, {self.input_px}")
        for name in ("epochs", "per_class", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.batch_size < 2:
            raise UsageError("batch_size = 1: must be at least 2, batch normalisation needs company")
        if self.learning_rate == 0 or min(self.patience, self.seed) < 0:
            raise UsageError("learning_rate must be positive; patience and seed must not be negative")
        for name in UNIT:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} = {getattr(self, name):g}: must lie in 0-1")

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and deviation that px / 255 are brought to before they enter the network; the published one takes them as
        they are."""
        return (0.0, 1.0) if self.architecture == "matek2019" else (0.5, 0.25)

    def plain(self) -> dict[str, Any]:
        """As plain values, for tables and checkpoints."""
        return asdict(self)


def recipes_folder() -> Path:
    """The folder of the recipes that come along."""
    return Path(str(resources.files("slidescreen"))) / "training" / "classifier" / RECIPES


def load_recipe(name_or_file: str) -> Recipe:
    """A recipe that comes along, by name, or from a TOML file. Raises UsageError naming the key that is wrong."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = recipes_folder() / f"{name_or_file}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in recipes_folder().glob("*.toml")))
            raise UsageError(f"--recipe {name_or_file}: no such recipe; use one of {known}, or a TOML file")
    try:
        return from_table(path, "", Recipe, read_toml(path))
    except UsageError as error:
        raise error if str(error).startswith(str(path)) else UsageError(f"{path}: {error}") from None


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML, every key."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.plain().items())
