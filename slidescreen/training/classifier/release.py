"""From a fold of a training run to a model folder: calibrated, with rejection, measured, and described for people.

What the network says of the images is kept beside the folder in the making, so that a release that was broken off, or is made
again with other evidence, does not run the network again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from slidescreen.engines import ClassifySettings, open_engine
from slidescreen.errors import UsageError
from slidescreen.model import CARD, load_card, load_network, write_model
from slidescreen.taxonomy import NOT_A_LEUKOCYTE
from slidescreen.training.classifier import judged
from slidescreen.training.classifier.images import LabelledImage, list_images
from slidescreen.training.classifier.material import STILL_READABLE, Material, gather
from slidescreen.training.classifier.outputs import Looks
from slidescreen.training.classifier.recipe import Recipe, recipe_toml
from slidescreen.training.classifier.rejecting import OURS
from slidescreen.training.classifier.release_text import README, USE, describe, licence_of, limits_of
from slidescreen.training.classifier.run import FOLDS, RUN
from slidescreen.training.classifier.tables import Table, read_decision, read_evidence, tables_of
from slidescreen.training.classifier.turning import measure_turns

log = logging.getLogger(__name__)

RECIPE: Final = "recipe.toml"
SPLIT: Final = "split.csv"
PICTURES: Final = frozenset({".png", ".svg"})
MARGINS: Final = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class ReleaseSettings:
    """`fold` of the run is released. `fields`: folder of labelled fields, for red cells, ground and other cameras. `half`:
    weights in float16. `evidence`: JSON files and pictures of benchmarks. `decision`: JSON of thresholds, chosen by
    `benchmarks/folds.py`. `turned`: unseen images to look at in eight orientations."""

    out: Path
    fold: int
    data: Path
    fields: Path | None = None
    um_per_px: float | None = None
    half: bool = True
    evidence: tuple[Path, ...] = ()
    decision: Path | None = None
    turned: int = 600
    device: str = "auto"


def release(run: Path, settings: ReleaseSettings) -> Path:
    """Write the model folder, whole or not at all. Returns it.

    Raises UsageError where run, data and fold do not belong together, OutputError where the folder is there already.
    """
    if settings.out.exists():
        raise UsageError(f"{settings.out}: is there already; choose another folder with -o, or remove it")
    evidence = {path.stem: read_evidence(path) for path in settings.evidence if path.suffix not in PICTURES}
    decision = None if settings.decision is None else read_decision(settings.decision)
    pictures = {path.name: _read(path) for path in settings.evidence if path.suffix in PICTURES}
    chosen = _choose(run, settings)
    if settings.half:
        chosen.network.half()
    cache = settings.out.with_name(f".{settings.out.name}.outputs")
    with tempfile.TemporaryDirectory(prefix="slidescreen-") as aside:
        rounded = Path(aside) / "model"
        write_model(rounded, chosen.network, chosen.plain)
        card = load_card(rounded)
        looks = Looks(open_engine(rounded, ClassifySettings(settings.device)), card.sha256, cache)
        log.info("%d unseen images, %d of label -: running the network", len(chosen.unseen), len(chosen.strangers))
        material = gather(looks, card.classes, chosen.unseen, chosen.known, chosen.strangers, settings.fields)
        log.info("fitting and measuring")
        fitted = judged.fit_all(material)
        tables, measured = _measured(looks, material, fitted, card.classes, settings.turned)
    whole = _card(chosen, settings, material, fitted, measured) | ({} if decision is None else {"decision": decision})
    whole |= {
        "evidence": evidence,
        "tables": [table.plain() for table in tables],
    }
    shown = [*tables, *(table for stem, found in evidence.items() for table in tables_of(stem, found))]
    texts = {
        RECIPE: recipe_toml(chosen.recipe),
        SPLIT: "file,fold\n" + "".join(f"{file},{fold}\n" for file, fold in sorted(chosen.fold_of.items()) if fold),
        README: describe(whole, shown, settings.half, list(pictures)),
    }
    files = {name: text.encode() for name, text in texts.items()} | pictures
    write_model(settings.out, chosen.network, whole, fitted.rejection, files)
    shutil.rmtree(cache, ignore_errors=True)
    return settings.out


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """What is released. `told`: of `run.json`. `plain`: the fold's card, without what is fitted here."""

    told: Mapping[str, Any]
    recipe: Recipe
    plain: Mapping[str, Any]
    network: nn.Module
    fold_of: Mapping[str, int]
    unseen: Sequence[LabelledImage]
    known: Sequence[LabelledImage]
    strangers: Sequence[LabelledImage]


def _choose(run: Path, settings: ReleaseSettings) -> _Chosen:
    told = _run_record(run)
    images = list_images(settings.data, settings.um_per_px)
    fold_of = _folds(run, images)
    folder = run / f"fold-{settings.fold}" / "model"
    if not (folder / CARD).is_file():
        raise UsageError(f"{folder}: holds no {CARD}; train fold {settings.fold} first")
    card = load_card(folder)
    plain = json.loads((folder / CARD).read_text(encoding="utf-8"))
    unseen = [i for i in images if fold_of.get(i.file) == settings.fold]
    if len({i.label for i in unseen}) < 2:
        raise UsageError(f"{run}: fold {settings.fold} tests {len(unseen)} images, of fewer than two classes; release another")
    return _Chosen(
        told=told,
        recipe=Recipe(**told["recipe"]),
        plain={k: v for k, v in plain.items() if k not in ("calibration", "rejection", "decision")},
        network=load_network(folder, card),
        fold_of=fold_of,
        unseen=unseen,
        known=[i for i in images if i.file in fold_of and fold_of[i.file] != settings.fold],
        strangers=[i for i in images if i.label == NOT_A_LEUKOCYTE],
    )


def _card(
    chosen: _Chosen,
    settings: ReleaseSettings,
    material: Material,
    fitted: judged.Fitted,
    measured: Mapping[str, float | str],
) -> dict[str, Any]:
    """Everything that the card says but tables and evidence."""
    told, sources = chosen.told, sorted({image.source for image in (*chosen.unseen, *chosen.known)})
    return {
        **chosen.plain,
        "name": settings.out.resolve().name,
        "measured": measured,
        "calibration": _calibration(fitted, measured),
        "rejection": {
            "threshold": fitted.threshold,
            "kept": judged.KEPT[0],
            "score": OURS,
            "fitted_on": [kind for kind, group in material.strangers.items() if group.fitted],
        },
        "training": {
            "recipe": chosen.recipe.plain(),
            "split": told["split"],
            "fold": settings.fold,
            "folds": told["folds"],
        },
        "training_data": _training_data(chosen, settings.fold),
        "data": told["data"] | _hashes(settings),
        "intended_use": USE,
        "limits": limits_of(sources),
        "licence": licence_of(sources, settings.fields is not None, chosen.recipe.start),
        "released": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _measured(
    looks: Looks, material: Material, fitted: judged.Fitted, classes: Sequence[str], turned: int
) -> tuple[list[Table], dict[str, float | str]]:
    """Every table, and the numbers that the report shows."""
    p = judged.calibrated(material)
    whole, sources = judged.by_source(material, p, classes)
    before, after, calibration = judged.calibration_table(material, p)
    found = judged.verdicts(material, OURS)
    rows = np.random.default_rng(0).permutation(len(material.images))[:turned]
    turns = measure_turns(looks, material, rows, fitted.temperature, classes)
    label = [found.by_kind[kind][0] for kind in judged.strangers_of(material)]
    refused, strangers = (sum(n) for n in zip(*label, strict=True)) if label else (0, 0)
    measured: dict[str, float | str] = {
        "images": str(whole.images),
        "balanced accuracy": round(whole.balanced[0], 3),
        "blast AUC": round(whole.blast[0], 3),
        "atypical AUC": round(whole.atypical[0], 3),
        "ECE": round(after, 3),
        "ECE before calibration": round(before, 3),
        "leukocytes refused": round(found.lost[0][0] / found.lost[0][1], 4),
    }
    cameras = [found.by_kind[kind][0] for kind in material.others if kind != STILL_READABLE]
    if cameras:
        measured["leukocytes of other cameras refused"] = round(sum(n[0] for n in cameras) / sum(n[1] for n in cameras), 3)
    if strangers:
        measured["label - refused"] = round(refused / strangers, 3)
    measured["gain of 8 orientations in balanced accuracy"] = round(turns.balanced_gain, 3)
    tables = [
        *(sources, judged.recalls(material, p, classes), judged.confusion(material, p, classes), calibration),
        *(judged.rejection_table(material, found), judged.unknown_table(material), judged.lost_table(material, classes)),
        *(judged.methods_table(material), judged.ties_table(p, material.labels, classes, MARGINS), *turns.tables),
    ]
    return tables, {k: v for k, v in measured.items() if v == v}


def _run_record(run: Path) -> dict[str, Any]:
    try:
        told = json.loads((run / RUN).read_text(encoding="utf-8"))
        Recipe(**told["recipe"])
        return {key: told[key] for key in ("recipe", "split", "folds", "data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run}: is no training run of this version ({error}); give the folder that holds {RUN}") from error


def _folds(run: Path, images: Sequence[LabelledImage]) -> dict[str, int]:
    """The fold of each image. Raises UsageError where the run was trained on others."""
    try:
        with (run / FOLDS).open(encoding="utf-8", newline="") as file:
            fold_of = {row["file"]: int(row["fold"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{run / FOLDS}: cannot be read ({error}); give a whole training run") from error
    usable = {image.file for image in images if image.label != NOT_A_LEUKOCYTE}
    if usable != set(fold_of):
        raise UsageError(f"{run}: was trained on other images than those given with --data; give the same")
    return fold_of


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--evidence {path}: cannot be read ({error.strerror}); check the path") from error


def _calibration(fitted: judged.Fitted, measured: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": "temperature",
        "temperature": fitted.temperature,
        "ece_before": measured.get("ECE before calibration"),
        "ece": measured.get("ECE"),
        "fitted_on": f"{measured['images']} unseen images; the ECE is of each half of them by the temperature of the other",
    }


def _training_data(chosen: _Chosen, fold: int) -> str:
    data = chosen.told["data"]
    sources = ", ".join(f"{name or 'source unnamed'} {n}" for name, n in data["per_source"].items())
    patients = len({(image.source, image.patient) for image in chosen.unseen if image.patient})
    aside = f"{len(chosen.unseen)} of them, {patients} whole patients among them, were kept aside (fold {fold})."
    return f"{data['images']} images of single cells ({sources}). {aside} Calibration, rejection and all numbers rest on these."


def _hashes(settings: ReleaseSettings) -> dict[str, str]:
    """sha256 of the tables of the data, where they are files."""
    places = {"cells_csv_sha256": settings.data if settings.data.is_file() else settings.data / "cells.csv"}
    if settings.fields is not None:
        places["fields_csv_sha256"] = settings.fields / "fields.csv"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in places.items() if path.is_file()}
