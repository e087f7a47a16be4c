"""A whole training from the command line: folds, models that screen, predictions, going on, and wrong use."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_images import COLOURS, write_published, write_table

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.errors import UsageError
from slidescreen.model import load_card, load_network
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.images import list_images
from slidescreen.training.classifier.recipe import Recipe
from slidescreen.training.classifier.run import (
    RunSettings,
    measure,
    starter,
    train_folds,
    usable_images,
)

RECIPE = Recipe(architecture="sequential", input_px=32, epochs=4, per_class=32, batch_size=16, precision="float32", patience=0)


def train(data: Path, out: Path, **changes: object) -> list[object]:
    settings = RunSettings(out, out.parent / "packed", "cpu", **({"split": "patient", "folds": 3} | changes))  # type: ignore[arg-type]
    return list(train_folds(usable_images(list_images(data)), RECIPE, settings, starter(RECIPE)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("cells") / "set", each=9)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "painted"
    assert len(train(data, out)) == 3
    return out


def test_every_image_is_tested_once_and_never_by_a_model_that_saw_its_patient(run: Path) -> None:
    dealt = {row["file"]: row for row in rows(run / "folds.csv")}
    assert len(dealt) == 27
    tested: list[str] = []
    for fold in ("1", "2", "3"):
        told = rows(run / f"fold-{fold}" / "predictions.csv")
        tested += [row["file"] for row in told]
        assert {dealt[row["file"]]["fold"] for row in told} == {fold} == {row["fold"] for row in told}
        seen = {row["patient"] for row in dealt.values() if row["fold"] != fold}
        assert seen.isdisjoint(row["patient"] for row in told)
    assert sorted(tested) == sorted(dealt)


def test_predictions_are_what_the_stored_model_says(run: Path, data: Path) -> None:
    told = rows(run / "fold-1" / "predictions.csv")
    first = told[0]
    assert list(first)[:8] == ["file", "gold", "fold", "source", "patient", "reannotation_1", "reannotation_2", "label"]
    assert list(first)[8:] == [*(f"p_{code}" for code in CODES), "p_blast", "p_atypical"]
    from slidescreen.patches import patch_of_image
    from slidescreen.slide import read_image

    classifier = load_classifier(run / "fold-1" / "model", ClassifySettings("cpu", engine="torch"))
    said = classifier.probabilities(patch_of_image(read_image(data / first["file"]), 0.29)[None])[0]
    said_before = [float(first[f"p_{code}"]) for code in CODES]
    assert said_before == pytest.approx(said.tolist(), abs=1e-3)  # bfloat16 rounds a batch otherwise than one image
    assert float(first["p_blast"]) == pytest.approx(float(first["p_MYO"]) + float(first["p_MOB"]), abs=2e-6)
    assert first["label"] == CODES[int(np.argmax(said))]


def test_it_learned_the_colours(run: Path) -> None:
    told = [row for fold in (1, 2, 3) for row in rows(run / f"fold-{fold}" / "predictions.csv")]
    assert sum(row["label"] == row["gold"] for row in told) > 20
    card = json.loads((run / "fold-1" / "model" / "card.json").read_text())
    assert card["measured"]["balanced accuracy"] == pytest.approx(measure_of(run / "fold-1"), abs=6e-4)
    assert "no patient in two folds" in card["training_data"]


def measure_of(fold: Path) -> float:
    told = rows(fold / "predictions.csv")
    recalls = [np.mean([row["label"] == code for row in told if row["gold"] == code]) for code in COLOURS]
    return float(np.mean(recalls))


def test_the_record_of_the_run(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    assert (told["split"], told["folds"], told["architecture"]) == ("patient", 3, "sequential")
    assert told["data"]["per_class"] == {"LYT": 9, "MYO": 9, "NGS": 9}
    assert told["recipe"]["per_class"] == 32
    assert list((run / "fold-1" / "tensorboard").iterdir())


def test_a_run_is_gone_on_with_only_when_asked_and_only_when_it_is_the_same(run: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="holds a training run; --resume goes on"):
        train(data, run)
    with pytest.raises(UsageError, match="is a run with another split"):
        train(data, run, resume=True, split="stratified")
    predictions = (run / "fold-2" / "predictions.csv").read_bytes()
    model = (run / "fold-2" / "model" / "weights.safetensors").read_bytes()
    (run / "fold-2" / "predictions.csv").unlink()
    (done,) = train(data, run, resume=True)
    assert done.fold == 2  # type: ignore[attr-defined]
    assert (run / "fold-2" / "predictions.csv").read_bytes() == predictions
    assert (run / "fold-2" / "model" / "weights.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": (4,)}, "--fold 4: must lie in 1-3"),
        ({"folds": 4}, "3 patients cannot be dealt out to 4 folds"),
    ],
)
def test_a_fold_that_cannot_be(data: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(data, tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_a_training_starts_from_a_model_with_its_last_layer(run: Path) -> None:
    folder = run / "fold-1" / "model"
    network = starter(replace(RECIPE, start=str(folder)))()
    assert network.training
    stored = load_network(folder, load_card(folder))
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), stored.state_dict().values(), strict=True))
    with pytest.raises(UsageError, match="other classes or colours than the recipe"):
        starter(replace(RECIPE, architecture="resnext50_32x4d", start=str(folder)))
    with pytest.raises(UsageError, match="only resnext50_32x4d and efficientnet_lite0 can start from weights"):
        starter(replace(RECIPE, start="imagenet.safetensors"))


def test_only_images_of_the_classes_are_learned_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image is labelled with one of the 15 classes"):
        usable_images(list_images(write_table(tmp_path / "set", label="-")))


def test_measures_of_one_kind_only_are_undefined() -> None:
    p = np.full((4, 15), 1 / 15, np.float32)
    measured = measure(["LYT", "LYT", "NGS", "NGS"], p)
    assert measured == {"balanced accuracy": 0.0, "blast AUC": None, "atypical AUC": None}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slidescreen", *arguments], capture_output=True, text=True, timeout=200, check=False
    )


def test_the_published_set_from_the_command_line(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "set", each=4)
    (tmp_path / "r.toml").write_text('architecture = "sequential"\ninput_px = 32\nper_class = 8\nbatch_size = 8\nepochs = 1\n')
    out = tmp_path / "run"
    asked = ["train", "classifier", "--data", str(folder), "--recipe", str(tmp_path / "r.toml"), "--folds", "2", "-o", str(out)]
    done = command(*asked, "--fold", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "fold 2: 6 images not seen in training: balanced accuracy" in done.stdout
    assert {row["reannotation_1"] for row in rows(out / "fold-2" / "predictions.csv")} <= {"", "MYO"}
    assert not (out / "fold-1").exists()
    again = command(*asked)
    assert (again.returncode, again.stdout) == (2, "")
    assert "--resume goes on with it" in again.stderr
    checked = command("data", "check", str(folder))
    assert checked.returncode == 0
    assert "12 images, 0 patients" in checked.stdout
    assert "class MYO Myeloblast: 4, fewer than 10" in checked.stdout
    assert "re-annotated: 3 once, 3 twice" in checked.stdout
    (folder / "MYO" / "MYO_0001.tiff").write_bytes(b"")
    broken = command("data", "check", str(folder))
    assert broken.returncode == 1
    assert "unreadable: 1" in broken.stdout
