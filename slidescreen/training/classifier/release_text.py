"""A model's README: what its card says, for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from slidescreen.errors import ModelError
from slidescreen.model import find_model, models_folder, read_card
from slidescreen.training.classifier.tables import Table

README: Final = "README.md"
USE: Final = (
    "Research. Types leukocytes of blood smears in Pappenheim, Wright or May-Gruenwald-Giemsa stain, cut to 29 um, into 15 "
    "classes, to presort cells for a morphologist, who reviews every result. Not for diagnosis, and not for other stains, bone "
    "marrow or fluids."
)
LIMITS: Final = (
    "Scans of laboratories other than those of the training images have not been measured unless a table says so. Calibration "
    "holds for images like those it was fitted on. Plasma cells are no class and are mostly taken for lymphocytes or blasts. "
    "Rejection knows best the kinds that it was fitted on; see the table of kinds never seen."
)
LIMITS_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "lmu": "Most LMU classes rest on 6-13 images.",
        "deepapl": (
            "deepapl's Promonocytes are labelled MOB and its unspecified blasts MYO, which hides monoblasts and abnormal "
            "promyelocytes; some of its labels are wrong, those of giant thrombocytes among them."
        ),
    }
)
LICENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "lmu": "AML-Cytomorphology_LMU (Matek et al. 2019, TCIA, doi 10.7937/tcia.2019.36f5o9ld) CC BY 3.0",
        "pbc": "PBC (Acevedo et al. 2020) CC BY 4.0 (as remembered, to be checked)",
        "deepapl": "deepapl (Sidhom et al. 2021) states a copyright and no licence, research use",
    }
)
"""By the name of a source in the table of images."""
IMAGENET: Final = "training started from EfficientNet-Lite0 of ImageNet, Apache 2.0, ImageNet's images for research only"
FIELDS: Final = "smear fields, for rejection: TXL-PBC, MIT"


def limits_of(sources: Collection[str]) -> str:
    """What a model of these sources cannot be trusted with."""
    return " ".join([LIMITS, *(text for source, text in LIMITS_OF.items() if source in sources)])


def licence_of(sources: Collection[str], fields: bool, start: str) -> str:
    """What the licences of these sources say, and of what training started from (`Recipe.start`)."""
    known = [text for source, text in LICENCES.items() if source in sources]
    rest = [f"{source or 'unnamed source'}: its own terms" for source in sources if source not in LICENCES]
    begun = [_started(start)] if start else []
    return f"Weights: research use. Data: {'; '.join([*known, *rest, *([FIELDS] if fields else []), *begun])}."


def _started(start: str) -> str:
    """What binds weights that training started from: those of ImageNet that come along, a model, or some file."""
    if start.endswith(".safetensors"):
        own = models_folder() / "imagenet" / Path(start).name
        told = Path(start)
        known = start.startswith("imagenet/") or (told.is_file() and own.is_file() and told.read_bytes() == own.read_bytes())
        return IMAGENET if known else f"training started from {told.name}: its own terms"
    try:
        terms = str(read_card(find_model(start)).get("licence", "its own terms"))
    except ModelError:  # it may have gone since
        terms = "its own terms"
    return f"training started from {start}: {terms.rstrip('.')}"


def _decision(decision: Mapping[str, Any] | None) -> list[str]:
    if decision is None:
        return []
    said = f"a blast from P(blast) {decision['blast']:g} on, atypical from {decision['atypical']:g}"
    return [f"- **Decides**: {said}. {decision['chosen_on']}"]


def describe(card: Mapping[str, Any], tables: Sequence[Table], half: bool, pictures: Sequence[str] = ()) -> str:
    """The README as Markdown; `card` as it is written, `tables` in order, `pictures` as file names beside it."""
    training, calibration, rejection = card["training"], card["calibration"], card["rejection"]
    recipe = training["recipe"]
    kinds = ", ".join(rejection["fitted_on"]) or "no strangers"
    said = ", ".join(f"{name} {value}" for name, value in card["measured"].items())
    again = f"--fold {training['fold']} --split models/{card['name']}/split.csv"
    lines = [
        f"# {card['name']}",
        "",
        "Written by `slidescreen train release`. `card.json` is what the program reads; this is for people.",
        "",
        f"- **What it is**: {card['architecture']}, 15 outputs, input {card['input_px']} px of 29 um, px / 255, mean "
        f"{card['mean'][0]:g}, std {card['std'][0]:g}. Weights in float{16 if half else 32}.",
        f"- **Use**: {card['intended_use']}",
        f"- **Training**: {card['training_data']}",
        f"- **Recipe**: `recipe.toml`, starting from {recipe.get('start') or 'random weights'}.",
        f"- **Measured on images it has not seen**: {said}.",
        f"- **Calibration**: logits are divided by {calibration['temperature']:g}.",
        *_decision(card.get("decision")),
        f"- **Refuses what is no leukocyte of its classes**: {rejection['score']}; threshold {rejection['threshold']:g}, "
        f"which keeps {100 * rejection['kept']:g} % of leukocytes. Fitted on: {kinds}.",
        f"- **Limits**: {card['limits']}",
        f"- **Licences**: {card['licence']}",
        "",
        "Trained again, by the same recipe on the same images (`DATA`):",
        "",
        "```",
        f"slidescreen train classifier --data DATA --recipe models/{card['name']}/recipe.toml {again} -o runs/{card['name']}",
        "```",
        "",
        "## What was measured",
        "",
        "\n\n".join([*(table.markdown() for table in tables), *(f"![{name}]({name})" for name in pictures)]),
        "",
    ]
    return "\n".join(lines)
