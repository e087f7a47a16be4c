"""A fold becomes a model: what is written, that it screens, and that the recipe of each model is what its card says."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_images import paint_cell, write_rows
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.cli.app import app
from slidescreen.errors import UsageError
from slidescreen.model import CARD, load_card, models_folder
from slidescreen.patches import patch_of_image
from slidescreen.records import RgbImage, Thresholds
from slidescreen.slide import read_image
from slidescreen.training.classifier.cutouts import GROUND, PLATELET, RED_CELL, cut_leukocytes, cut_strangers
from slidescreen.training.classifier.fit import Step
from slidescreen.training.classifier.folds import split_images
from slidescreen.training.classifier.images import list_images
from slidescreen.training.classifier.judged import balanced_accuracy
from slidescreen.training.classifier.recipe import Recipe, load_recipe, recipe_toml
from slidescreen.training.classifier.release import ReleaseSettings, release
from slidescreen.training.classifier.release_text import licence_of
from slidescreen.training.classifier.run import RunSettings, starter, train_folds, usable_images
from slidescreen.training.classifier.tables import Table, number, read_evidence, share, tables_of

RECIPE = Recipe(architecture="sequential", input_px=32, epochs=3, per_class=24, batch_size=8, precision="float32", patience=0)


def paint_stranger(seed: int, side: int) -> RgbImage:
    """Green stripes: nothing like a cell."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 230.0)
    image[:, :: 3 + seed % 3] = (40, 200, 60)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes from six patients, and strangers of label -."""
    folder = tmp_path_factory.mktemp("cells") / "set"
    folder.mkdir()
    rows = []
    for label, each in {"MYO": 24, "LYT": 24, "NGS": 24, "-": 16}.items():
        for i in range(each):
            name = f"{'none' if label == '-' else label}_{i}.png"
            Image.fromarray(paint_stranger(i, 100) if label == "-" else paint_cell(label, i, 100)).save(folder / name)
            kind = "STRIPES" if label == "-" else label
            rows.append({"file": name, "label": label, "um_per_px": "0.29", "source": "lmu", "patient": f"P{i % 6}"})
            rows[-1]["source_label"] = kind
    write_rows(folder / "cells.csv", rows)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "painted"
    settings = RunSettings(out, out.parent / "packed", "cpu", "patient", 2, (1,))
    assert len(list(train_folds(usable_images(list_images(data)), RECIPE, settings, starter(RECIPE)))) == 1
    return out


@pytest.fixture(scope="module")
def released(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "painted-1"
    evidence = out.parent / "controls.json"
    evidence.write_text(json.dumps({"conditions": {"cell only": {"blast AUC": {"value": 0.9, "ci95": [0.8, 1.0]}}}}))
    decision = out.parent / "decision.json"
    decision.write_text(json.dumps({"blast": 0.35, "atypical": 0.5, "chosen_on": "Chosen on paint.", "of_folds": {}}))
    arguments = ["train", "release", str(run), "--data", str(data), "-o", str(out), "--turned", "8", "--device", "cpu"]
    Image.fromarray(paint_cell("MYO", 0, 20)).save(out.parent / "patients.png")
    files = ["--evidence", str(evidence), "--evidence", str(out.parent / "patients.png"), "--decision", str(decision)]
    done = CliRunner().invoke(app, [*arguments, *files], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "balanced accuracy" in done.output
    return out


def test_what_a_release_holds(released: Path, run: Path, data: Path) -> None:
    names = {path.name for path in released.iterdir()}
    written = {"card.json", "weights.safetensors", "rejection.safetensors", "recipe.toml", "split.csv", "README.md"}
    assert names == written | {"patients.png"}
    assert {path.name for path in released.parent.iterdir()} == {"painted-1", "controls.json", "decision.json", "patients.png"}
    card = json.loads((released / CARD).read_text())
    with (run / "folds.csv").open(newline="") as file:
        unseen = [row for row in csv.DictReader(file) if row["fold"] == "1"]
    assert card["measured"]["images"] == str(len(unseen))
    assert (card["name"], card["training"]["fold"]) == ("painted-1", 1)
    assert card["calibration"]["temperature"] == load_card(released).temperature != 1
    assert card["decision"] == {"blast": 0.35, "atypical": 0.5, "chosen_on": "Chosen on paint."}
    assert load_card(released).thresholds == Thresholds(0.35, 0.5)
    assert card["rejection"]["fitted_on"] == ["lmu: STRIPES", "out of focus, 2 um"]
    assert card["evidence"]["controls"]["conditions"]["cell only"]["blast AUC"]["value"] == 0.9
    assert len(card["data"]["cells_csv_sha256"]) == 64
    assert "TXL-PBC" not in card["licence"]
    assert "CC BY 3.0" in card["licence"]
    images = usable_images(list_images(data))
    again = split_images(images, str(released / "split.csv"), 2, 0)
    assert sorted(images[i].file for i in again.test(1)) == sorted(row["file"] for row in unseen)
    readme = (released / "README.md").read_text()
    for words in (
        "0.900 (0.800-1.000)",
        "a blast from P(blast) 0.35 on, atypical from 0.5. Chosen on paint.",
        "| lmu |",
        "Scores compared",
        "`--tta 8`",
        "recipe.toml",
        "![patients.png](patients.png)",
        card["licence"],
    ):
        assert words in readme


def test_the_licence_tells_of_weights_that_training_started_from() -> None:
    assert "ImageNet" in licence_of(["lmu"], False, "imagenet/efficientnet_lite0.safetensors")
    own = models_folder() / "imagenet" / "efficientnet_lite0.safetensors"
    assert "ImageNet" in licence_of(["lmu"], False, str(own))
    assert "ImageNet" not in licence_of(["lmu"], False, "resnext50-seed")
    derived = licence_of(["pbc"], False, "efficientnet-lite0-160")
    assert "ImageNet" in derived
    assert "Sidhom" in derived
    assert "other.safetensors: its own terms" in licence_of(["lmu"], False, "other.safetensors")


def test_the_released_model_types_cells_and_refuses_strangers(released: Path, data: Path) -> None:
    classifier = load_classifier(released, ClassifySettings("cpu"))
    half = {v.dtype for v in torch_state(released).values() if v.is_floating_point()}
    assert half == {torch.float16}

    def judged(pictures: list[RgbImage]) -> NDArray[np.float32]:
        judgement = classifier.judge(np.stack([patch_of_image(p, 0.29) for p in pictures]))
        assert judgement.outlier is not None
        return judgement.outlier

    with (released / "split.csv").open(newline="") as file:
        unseen = [read_image(data / row["file"]) for row in csv.DictReader(file) if row["fold"] == "1"]
    assert (judged(unseen) <= 0).mean() > 0.9
    assert (judged([paint_stranger(100 + i, 100) for i in range(12)]) > 0).mean() > 0.9


def torch_state(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "weights.safetensors"))


def test_what_was_measured_was_not_fitted(released: Path) -> None:
    tables = {table["title"]: table for table in json.loads((released / CARD).read_text())["tables"]}
    refused = {row[0]: row[1:] for row in tables["What is refused"]["rows"]}
    assert refused["all of label -"] == refused["lmu: STRIPES"]
    assert "out of focus, 1 um (never fitted on)" in refused
    (stripes,) = [row for row in tables["Kinds that the fit has never seen"]["rows"] if row[0] == "lmu: STRIPES"]
    assert stripes[1] == "all of lmu"
    assert [row[0] for row in tables["Calibration"]["rows"]] == ["all", "lmu"]


def test_a_release_that_cannot_be(run: Path, data: Path, released: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        release(run, ReleaseSettings(released, 1, data))
    with pytest.raises(UsageError, match=r"holds no card\.json; train fold 2 first"):
        release(run, ReleaseSettings(tmp_path / "m", 2, data))
    with pytest.raises(UsageError, match="is no training run"):
        release(data, ReleaseSettings(tmp_path / "m", 1, data))
    less = [{"file": image.file, "label": image.annotation, "um_per_px": "0.29"} for image in list_images(data)[1:]]
    write_rows(tmp_path / "less.csv", less)
    with pytest.raises(UsageError, match="was trained on other images"):
        release(run, ReleaseSettings(tmp_path / "m", 1, tmp_path / "less.csv"))
    (tmp_path / "e.json").write_text("[1]")
    with pytest.raises(UsageError, match="holds no tables"):
        release(run, ReleaseSettings(tmp_path / "m", 1, data, evidence=(tmp_path / "e.json",)))
    assert {path.name for path in tmp_path.iterdir()} == {"less.csv", "e.json"}


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=3e-5, start='a "b".safetensors', schedule="cosine")
    (tmp_path / "r.toml").write_text(recipe_toml(recipe))
    assert load_recipe(str(tmp_path / "r.toml")) == recipe


@pytest.mark.parametrize("folder", sorted(p.parent for p in models_folder().glob("*/recipe.toml")), ids=lambda p: p.name)
def test_the_recipe_of_each_model_is_its_cards_and_can_be_run(folder: Path, data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(folder / "recipe.toml"))
    told_by_card = json.loads((folder / CARD).read_text())["training"]["recipe"]
    assert recipe == Recipe(**told_by_card)  # fields that came after the card are at their defaults, which change nothing
    few = replace(recipe, input_px=32, first_px=32, epochs=1, per_class=8, batch_size=8, precision="float32")
    told: list[Step] = []
    settings = RunSettings(tmp_path / "run", tmp_path / "packed", "cpu", "patient", 2, (1,))
    (done,) = train_folds(usable_images(list_images(data)), few, settings, starter(few), lambda _fold, step: told.append(step))
    assert told[-1].step == told[-1].total
    assert np.isfinite(told[-1].loss)
    assert load_card(done.folder / "model").architecture == recipe.architecture


def test_tables_of_whatever_a_benchmark_wrote(tmp_path: Path) -> None:
    nested = {"model": "m", "rows": [{"a": 1, "b": 0.25}, {"a": 2, "b": None}], "by": {"x": {"n": 1}, "y": {"n": [1, 2]}}}
    (tmp_path / "b.json").write_text(json.dumps(nested))
    values, rows, by = tables_of("b", read_evidence(tmp_path / "b.json"))
    assert values.rows == (("model", "m"),)
    assert (rows.title, rows.columns, rows.rows) == ("b, rows", ("a", "b"), (("1", "0.25"), ("2", "\N{EN DASH}")))
    assert (by.columns, by.rows) == (("", "n"), (("x", "1"), ("y", "1, 2")))
    assert Table("T", "", ("a|b",), (("1\n2",),)).markdown() == "### T\n\n| a\\|b |\n| --- |\n| 1 2 |"
    assert share(1, 0) == "\N{EN DASH}"


def test_intervals_below_zero_are_told_apart_from_their_dash() -> None:
    assert number(0.5, 2, (0.25, 0.75)) == "0.50 (0.25-0.75)"
    assert number(-1.0, 1, (-2.5, 0.5)) == "-1.0 (-2.5 to 0.5)"


def test_balanced_accuracy_over_classes_with_enough_images() -> None:
    labels, best = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    ones = np.ones((1, 6))
    assert balanced_accuracy(labels, best, ones)[0] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert balanced_accuracy(labels, best, ones, 2)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(balanced_accuracy(labels, best, ones, 9)[0])


def test_strangers_and_leukocytes_are_cut_from_fields(real_images: Path) -> None:
    first: dict[str, list[str]] = {}
    for _, cutout in zip(range(60), cut_strangers(real_images / "fields"), strict=False):
        assert cutout.pixels.shape == (400, 400, 3)
        first.setdefault(cutout.kind, []).append(cutout.group)
    assert {RED_CELL, GROUND} <= set(first) <= {RED_CELL, GROUND, PLATELET}
    leukocytes = [c for _, c in zip(range(30), cut_leukocytes(real_images / "fields"), strict=False)]
    dark = [c.pixels[150:250, 150:250].mean() for c in leukocytes]
    assert np.median(dark) < 165  # a nucleus in the middle
