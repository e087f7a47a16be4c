"""The benchmarks that say whether a model can be trusted: what they hide is hidden, what they compute is right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from slidescreen.detect import DetectSettings
from slidescreen.detector_card import DEFAULT_DETECTOR
from slidescreen.detector_network import load_detector
from slidescreen.installed.check import painted_patch
from slidescreen.model import find_model
from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.images import LabelledImage

UM = PATCH_UM / PATCH_PX


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


controls, patients, folds = benchmark("controls"), benchmark("patients"), benchmark("folds")


def test_what_is_hidden_is_hidden_and_nothing_else() -> None:
    detector = load_detector(find_model(DEFAULT_DETECTOR), DetectSettings())
    patch = painted_patch()
    parts = controls.take_apart(patch, UM, detector)
    assert parts.held and parts.fits
    shown = controls.variants(parts)
    assert list(shown) == list(controls.CONDITIONS)
    assert (shown["whole"] == patch).all()
    assert parts.cell[200, 200] and 0.05 < parts.cell.mean() < 0.6
    for name in ("no cell", "no leukocyte", "no leukocyte, disc"):
        assert not [b for b in detector.find(shown[name], UM) if not b.refusal], name
    assert (shown["no cell"][~parts.cell] == patch[~parts.cell]).all()
    assert len(np.unique(shown["no cell"][parts.cell], axis=0)) == 1
    assert (shown["cell only"][parts.cell] == patch[parts.cell]).all()
    assert (shown["cell only, grey"][~parts.cell] == 200).all()
    assert np.abs(parts.ground - np.median(patch[patch.sum(2) > 600], axis=0)).max() < 12
    hole = (shown["no leukocyte, disc"] == np.rint(parts.ground)).all(2)
    assert hole[controls.disc()].all() and controls.disc().mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert controls.take_apart(np.full((400, 400, 3), 235, np.uint8), UM, detector) is None


def made(n: int = 60) -> tuple[list[LabelledImage], np.ndarray]:
    """Images of two sources, whose scores tell the patient and nothing else."""
    rng = np.random.default_rng(0)
    images, p = [], np.full((n, 15), 0.01)
    for i in range(n):
        patient = i % 6
        blast = rng.random() < 0.15 + 0.14 * patient
        source, name = ("a", f"P{patient}") if i < 48 else ("b", "")
        images.append(LabelledImage(Path(f"{i}.png"), f"{i}.png", "MYO" if blast else "NGS", UM, source, name))
        p[i, CODES.index("MYO")] += 0.1 * patient + 0.05 * rng.random()
    p[:, CODES.index("NGS")] += 1 - p.sum(1)
    return images, p


def test_within_a_patient_what_tells_only_the_patient_tells_nothing() -> None:
    images, p = made()
    predictions = controls.as_predictions(images, p)
    together, found, other = controls.measured(predictions)
    assert (together["source"], found["source"], other["source"]) == ("all together", "a", "b")
    assert found["images"] == 48 and found["patients"] == 6
    assert found["blast AUC"]["value"] > 0.6
    within = found["blast AUC within patients"]
    wins = pairs = 0.0
    for patient in range(6):
        own = [
            (x.label == "MYO", p[i, CODES.index("MYO")] + p[i, CODES.index("MOB")])
            for i, x in enumerate(images[:48])
            if i % 6 == patient
        ]
        for score in (s for yes, s in own if yes):
            for less in (s for yes, s in own if not yes):
                wins, pairs = wins + (score > less) + 0.5 * (score == less), pairs + 1
    assert within["value"] == pytest.approx(wins / pairs)
    assert abs(within["value"] - 0.5) < found["blast AUC"]["value"] - 0.5
    assert within["ci95"][0] < within["value"] < within["ci95"][1]
    assert other["blast AUC within patients"]["value"] is None
    json.dumps(controls.measured(predictions), allow_nan=False)


def test_the_source_is_told_from_a_colour_that_tells_it_and_not_from_noise() -> None:
    images, _ = made(200)
    told = np.array([[image.source == "a", 0.0] for image in images], float)
    assert controls.source_told(told, images) == 1
    noise = np.random.default_rng(1).normal(size=(200, 3))
    assert controls.source_told(noise, images) == pytest.approx(0.5, abs=0.15)
    assert controls.source_told(noise[:40], images[:40]) is None


def test_agreement_is_what_bland_and_altman_say() -> None:
    human, said = [0.0, 10.0, 20.0, 40.0, 80.0], [2.0, 9.0, 25.0, 43.0, 81.0]
    found = patients.agreement(human, said)
    difference = np.array(said) - np.array(human)
    assert found["bias, points"]["value"] == pytest.approx(2.0)
    assert found["r"]["value"] == pytest.approx(np.corrcoef(human, said)[0, 1])
    sd = np.std(difference, ddof=1)
    assert found["limits of agreement, points"] == pytest.approx([2 - 1.96 * sd, 2 + 1.96 * sd])
    assert found["bias, points"]["ci95"] == pytest.approx([2 - 2.776445 * sd / 5**0.5, 2 + 2.776445 * sd / 5**0.5])


def test_a_result_is_compared_with_the_labelled_cells(tmp_path: Path) -> None:
    labels = ["MYO", "NGS", "KSC", "-", "MOB", "EBO"]
    cells = [{"label": x, "xmin": 100 * i, "ymin": 0, "xmax": 100 * i + 80, "ymax": 80} for i, x in enumerate(labels)]
    (tmp_path / "P.json").write_text(json.dumps({"cells": cells}))
    (tmp_path / "summary.json").write_text(json.dumps({"blast": {"count": 2, "of": 4, "threshold": 0.5}}))
    rows = ["x_px,y_px,status,label,p_blast", "41,39,typed,MYO,0.9", "140,40,typed,NGS,0.1", "240,40,typed,KSC,0.0"]
    rows += ["440,40,rejected,,", "441,60,typed,MOB,0.4", "900,40,typed,MYO,0.8"]
    (tmp_path / "cells.csv").write_text("\n".join(rows) + "\n")
    found = patients.compare(tmp_path / "P.tif", tmp_path)
    assert (found.human, found.reported, found.labelled) == ((2, 3), (2, 4), (1, 3))
    assert (found.found, found.labelled_cells) == (5, 6)
    (tmp_path / "summary.json").write_text(json.dumps({"blast": {"count": 2, "of": 4, "threshold": 0.4}}))
    assert patients.compare(tmp_path / "P.tif", tmp_path).labelled == (2, 3)


def _fold(p_blast_of_blasts: float, patients_of_fold: tuple[str, ...], counted: int = 30) -> Any:
    """Patients with as many blasts as others, and smudge cells; each blast is MYO with this probability and else NGS."""
    made, columns, logits = [], [], np.full((0, len(CODES)), -20.0, np.float32)
    for patient in patients_of_fold:
        for k in range(counted):
            code = ("MYO", "NGS", "KSC")[k % 3]
            made.append(LabelledImage(Path(), f"{patient}-{k}", code, 0.1, "made", patient))
            columns.append(CODES.index(code))
            row = np.full((1, len(CODES)), -20.0, np.float32)
            row[0, columns[-1]] = np.log(p_blast_of_blasts) if code == "MYO" else 0.0
            if code == "MYO":
                row[0, CODES.index("NGS")] = np.log(1 - p_blast_of_blasts)
            logits = np.concatenate([logits, row])
    return folds.Fold(made, np.array(columns), np.stack([logits] * 8))


def test_the_threshold_is_where_patients_have_as_many_blasts_as_the_human_says() -> None:
    timid, sure = _fold(0.41, ("a", "b")), _fold(0.9, ("c", "d", "e"))
    found = folds.decide({1: timid, 2: timid, 3: sure}, CODES)
    assert found["blast"] == 0.4  # of those at which all blasts are called the nearest to 0.5
    assert found["of_folds"] == {"1": 0.4, "2": 0.4, "3": 0.4}
    assert "of 7 patients of 3 folds" in found["chosen_on"]
    assert "at 0.5 -28.6" in found["chosen_on"]
    assert found["atypical"] == 0.5


def test_patients_with_few_leukocytes_say_nothing() -> None:
    assert len(list(folds.fractions(_fold(0.9, ("a",), counted=27), CODES))) == 0
    assert len(list(folds.fractions(_fold(0.9, ("a",), counted=30), CODES))) == 1
